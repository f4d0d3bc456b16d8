"""Tensors within nested arguments, and their twins without data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["holds_tensor", "map_tensors", "meta_twin", "tensors_in"]


def map_tensors(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same nested value with every tensor changed; foreign containers stay as they are."""
    if isinstance(value, Tensor):
        return change(value)
    if type(value) in (tuple, list, torch.Size):
        kind = list if type(value) is list else tuple
        return kind(map_tensors(item, change) for item in value)
    if type(value) is dict:
        return {key: map_tensors(item, change) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(
            map_tensors(value.start, change),
            map_tensors(value.stop, change),
            map_tensors(value.step, change),
        )
    return value


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
