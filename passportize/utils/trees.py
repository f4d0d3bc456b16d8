"""Trees of tensors: what arguments, outputs and targets are made of, and walking them.

A tree is a tensor, a tuple (named ones and torch's own too), a list, a mapping (``UserDict``,
transformers' ``BatchEncoding`` and ``ModelOutput``, ``OrderedDict``, ...), a dataclass or a slice
of trees. Numbers, strings and the like are leaves that say nothing of a batch. Anything else is
foreign: nobody knows what it holds.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from enum import Enum
from numbers import Number
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from passportize.errors import InvalidArgument

__all__ = [
    "Path",
    "arguments_of",
    "call_model",
    "children_of",
    "copied",
    "foreign_in",
    "holds_tensor",
    "is_foreign",
    "leaves_in",
    "map_named",
    "map_tensors",
    "meta_twin",
    "moved_inputs",
    "place_of",
    "tensors_in",
]

Tree = TypeVar("Tree")
Path = tuple[Any, ...]
"""Where a leaf lies in a tree: indices, keys and names of fields, from the outside in."""

_SILENT = (
    type(None),
    Number,
    str,
    bytes,
    Enum,
    type,
    torch.Size,
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
    type(Ellipsis),
)
"""Leaves that are no tensors and hold none."""

_PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device})
"""The commonest of them, by exact type: asking an abstract class takes long."""


def map_tensors(function: Callable[[Tensor], Any], tree: Tree) -> Tree:
    """The same tree with every tensor replaced.

    Every container comes back as what it was; what is foreign stays as it is, with what it holds.
    A ``PackedSequence`` is such: its lengths are read while it is made.

    Args:
        function: What to put in the place of a tensor.
        tree: Any value.
    """
    mapped: Any = tree
    if isinstance(tree, Tensor):
        mapped = function(tree)
    else:
        items = _items(tree)
        if items is not None:
            mapped = _rebuilt(tree, [map_tensors(function, item) for _, item in items])
    return mapped  # type: ignore[no-any-return]


def map_named(function: Callable[[Path, Tensor], Any], tree: Tree, path: Path = ()) -> Tree:
    """The same for a function that also asks where the tensor lies."""
    mapped: Any = tree
    if isinstance(tree, Tensor):
        mapped = function(path, tree)
    else:
        items = _items(tree)
        if items is not None:
            values = [map_named(function, item, (*path, key)) for key, item in items]
            mapped = _rebuilt(tree, values)
    return mapped  # type: ignore[no-any-return]


def leaves_in(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every leaf of a tree, tensor or not, with its path, in order."""
    items = None if isinstance(tree, Tensor) else _items(tree)
    if items is None:
        yield path, tree
        return
    for key, item in items:
        yield from leaves_in(item, (*path, key))


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """Every tensor of a tree, in order, and those of a ``PackedSequence``."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from tensors_in(item)
    else:
        for _, item in _items(tree) or ():
            yield from tensors_in(item)


def foreign_in(tree: Any) -> Iterator[Any]:
    """Every leaf of which nobody knows what it holds."""
    for _, leaf in leaves_in(tree):
        if is_foreign(leaf):
            yield leaf


def is_foreign(value: Any) -> bool:
    """Whether nobody knows what a value holds: it is no container, no tensor and no plain leaf."""
    return not isinstance(value, (Tensor, *_SILENT)) and _items(value) is None


def children_of(tree: Any) -> list[Any]:
    """What a container holds; nothing for a leaf."""
    return [] if isinstance(tree, Tensor) else [item for _, item in _items(tree) or ()]


def holds_tensor(value: Any) -> bool:
    """Whether there is a tensor in a nested value."""
    return next(tensors_in(value), None) is not None


def _items(tree: Any) -> list[tuple[Any, Any]] | None:
    """Keys and values of a container, None for a leaf."""
    if type(tree) in _PLAIN:
        return None
    if type(tree) is dict:
        return list(tree.items())
    if isinstance(tree, (tuple, list)):
        if isinstance(tree, (torch.Size, PackedSequence)):
            return None
        return list(enumerate(tree))
    if isinstance(tree, _SILENT):
        return None
    if isinstance(tree, Mapping):
        return list(tree.items())
    if isinstance(tree, slice):
        return [(name, getattr(tree, name)) for name in ("start", "stop", "step")]
    if dataclasses.is_dataclass(tree) and not isinstance(tree, nn.Module):
        names = (field.name for field in dataclasses.fields(tree))
        return [(name, getattr(tree, name)) for name in names if hasattr(tree, name)]
    return None


def _rebuilt(tree: Any, values: list[Any]) -> Any:
    """A container of the same kind with other values under the same keys."""
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*values)
    if isinstance(tree, (tuple, list)):
        return type(tree)(values)
    if isinstance(tree, slice):
        return slice(*values)
    if isinstance(tree, Mapping):
        mapped = dict(zip(tree, values, strict=True))
        if type(tree) is dict:
            return mapped
        if isinstance(tree, defaultdict):
            return type(tree)(tree.default_factory, mapped)
        if isinstance(tree, dict) or not isinstance(tree, MutableMapping):
            return type(tree)(mapped)  # type: ignore[call-arg]
        twin = copy.copy(tree)
        for key, value in mapped.items():
            twin[key] = value
        return twin
    twin = copy.copy(tree)
    for (name, _), value in zip(_items(tree) or (), values, strict=True):
        object.__setattr__(twin, name, value)  # a frozen dataclass as well
    return twin


# --- what a model is called with --------------------------------------------------------------


def arguments_of(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of one call.

    Args:
        inputs: A tuple or list (positional arguments), a mapping with string keys (keyword
            arguments), or any other object, a named tuple too (the only argument).

    Raises:
        InvalidArgument: A mapping has keys that can't be argument names.
    """
    if isinstance(inputs, (tuple, list)) and not hasattr(inputs, "_fields"):
        return tuple(inputs), {}
    if isinstance(inputs, Mapping):
        if not all(isinstance(key, str) for key in inputs):
            raise InvalidArgument(
                f"a {type(inputs).__name__} is taken as keyword arguments, but not all of its keys "
                "are strings. Put it into a tuple, (inputs,), to pass it as one argument"
            )
        return (), dict(inputs)
    return (inputs,), {}


def call_model(model: nn.Module, inputs: Any) -> Any:
    """Call a model on one batch, as :func:`arguments_of` takes it."""
    args, kwargs = arguments_of(inputs)
    return model(*args, **kwargs)


def place_of(model: nn.Module) -> torch.device:
    """The device of a model's first parameter, the CPU if it has none."""
    return next((tensor.device for tensor in model.parameters()), torch.device("cpu"))


def moved_inputs(inputs: Any, device: torch.device) -> Any:
    """Inputs of a batch as :func:`call_model` takes them, on a device."""
    if isinstance(inputs, Tensor) or _items(inputs) is not None:
        return map_tensors(lambda tensor: tensor.to(device), inputs)
    return inputs.to(device) if hasattr(inputs, "to") else inputs


class _CloneTensors(torch.overrides.TorchFunctionMode):
    """``copy.deepcopy`` within, also of tensors that have a history."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is Tensor.__deepcopy__:
            tensor, memo = args
            return memo.setdefault(id(tensor), tensor.clone())
        return func(*args, **(kwargs or {}))


def copied(value: Tree) -> Tree:
    """A copy that shares no tensor and no container; gradients flow through it to the original.

    Raises:
        Exception: Whatever a foreign object raises that does not let itself be copied.
    """
    with _CloneTensors():
        return copy.deepcopy(value)


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
