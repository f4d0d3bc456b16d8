"""Nested arguments: the tensors within them, calling a model with them, twins without data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

__all__ = [
    "call_model",
    "holds_tensor",
    "map_tensors",
    "meta_twin",
    "moved_inputs",
    "place_of",
    "tensors_in",
]

Tree = TypeVar("Tree")


def map_tensors(function: Callable[[Tensor], Any], tree: Tree) -> Tree:
    """The same nest with every tensor replaced.

    Tuples, lists and dicts, and what derives from them (named tuples, ``ModelOutput``), come back
    as what they were, and so do slices; other containers stay as they are, with what they hold.
    A ``PackedSequence`` is such: its lengths are read while it is made.

    Args:
        function: What to put in the place of a tensor.
        tree: Any value.
    """
    mapped: Any = tree
    if isinstance(tree, Tensor):
        mapped = function(tree)
    elif isinstance(tree, (torch.Size, PackedSequence)):
        pass
    elif isinstance(tree, tuple) and hasattr(tree, "_fields"):
        mapped = type(tree)(*(map_tensors(function, item) for item in tree))
    elif isinstance(tree, (tuple, list)):
        mapped = type(tree)(map_tensors(function, item) for item in tree)
    elif isinstance(tree, dict):
        mapped = {key: map_tensors(function, item) for key, item in tree.items()}
        if isinstance(tree, defaultdict):
            mapped = type(tree)(tree.default_factory, mapped)
        elif type(tree) is not dict:
            mapped = type(tree)(mapped)
    elif isinstance(tree, slice):
        bounds = (map_tensors(function, end) for end in (tree.start, tree.stop, tree.step))
        mapped = slice(*bounds)
    return mapped  # type: ignore[no-any-return]


def call_model(model: nn.Module, inputs: Any) -> Any:
    """Call a model on one batch.

    Args:
        model: The model.
        inputs: A tuple of positional or a dict of keyword arguments, or the only argument.
    """
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def place_of(model: nn.Module) -> torch.device:
    """The device of a model's first parameter, the CPU if it has none."""
    return next((tensor.device for tensor in model.parameters()), torch.device("cpu"))


def moved_inputs(inputs: Any, device: torch.device) -> Any:
    """Inputs of a batch as :func:`call_model` takes them, on a device."""
    if isinstance(inputs, list):
        inputs = tuple(inputs)  # a DataLoader makes lists of tuples
    if isinstance(inputs, (Tensor, tuple, dict)):
        return map_tensors(lambda tensor: tensor.to(device), inputs)
    return inputs.to(device) if hasattr(inputs, "to") else inputs


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists and dicts, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)


def holds_tensor(value: Any) -> bool:
    """Whether there is a tensor in a nested value."""
    return next(tensors_in(value), None) is not None


def meta_twin(tensor: Tensor) -> Tensor:
    """A tensor of the same shape, strides and type on the meta device, which costs nothing."""
    with torch._C.DisableTorchFunction():
        if nn.parameter.is_lazy(tensor):
            return tensor
        try:
            twin = torch.empty_strided(
                tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta"
            )
        except (RuntimeError, NotImplementedError):
            twin = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(twin, requires_grad=tensor.requires_grad)
        return twin
