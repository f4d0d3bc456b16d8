"""Modules and tensors as they were, to be put back: what they hold, and values that changed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

__all__ = ["ModuleRecord", "TensorRecord", "parts_of", "tensor_values", "write_back"]

_CONTAINERS = (dict, list, set)
_NOTHING: dict[Any, Any] = {}


class ModuleRecord:
    """The attributes of one module, one level into its plain containers."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.attributes = dict(vars(module))
        # A module has a dozen containers that are empty; copies of these would keep Python's
        # collector of garbage busy.
        self.contents = [
            (value, value.copy() if value else _NOTHING)
            for value in self.attributes.values()
            if isinstance(value, _CONTAINERS)
        ]

    def restore(self) -> None:
        """Put all of it back; objects that are still the same are not touched."""
        for container, content in self.contents:
            if not _same(container, content):
                _refill(container, content)
        current = vars(self.module)
        if not _same(current, self.attributes):
            _refill(current, self.attributes)


def _same(container: Any, content: Any) -> bool:
    """Whether two containers hold the same objects in the same order, without calling ``==``."""
    if len(container) != len(content):
        return False
    if not content:
        return True
    if isinstance(container, dict):
        return all(
            a is c and b is d
            for (a, b), (c, d) in zip(container.items(), content.items(), strict=True)
        )
    if isinstance(container, list):
        return all(a is b for a, b in zip(container, content, strict=True))
    return {id(item) for item in container} == {id(item) for item in content}


def _refill(container: Any, content: Any) -> None:
    """Give a container its content back; nothing that belongs in it is ever missing meanwhile."""
    if isinstance(container, list):
        container[:] = content
    elif isinstance(container, set):
        container.update(content)
        container.intersection_update(content)
    else:
        container.update(content)
        for key in [key for key in container if key not in content]:
            del container[key]
        for key in content:  # in their order
            container[key] = container.pop(key)


class TensorRecord:
    """The shape, the strides and the values of one tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.alias = tensor.detach()  # keeps shape and strides, whatever the tensor is resized to
        self.version = tensor._version
        self.copies = [part.clone() for part in parts_of(self.alias)]

    def restore(self) -> None:
        """Give the tensor what it had."""
        if (
            self.tensor.layout == torch.strided
            and not self.tensor.is_nested
            and (
                self.tensor.shape != self.alias.shape or self.tensor.stride() != self.alias.stride()
            )
        ):
            self.tensor.set_(self.alias)  # type: ignore[call-overload]
        # Not the version alone: some batch_norm kernels update their statistics without counting
        # it.
        changed = self.tensor._version != self.version
        for part, copy in zip(parts_of(self.alias), self.copies, strict=True):
            if changed or not (part.is_meta or torch.equal(part, copy)):
                part.copy_(copy)
        if self.tensor.layout != torch.strided and changed:
            self.tensor.copy_(self.alias)


def parts_of(tensor: Tensor) -> list[Tensor]:
    """The dense tensors that a tensor is kept in: itself, or indices and values of a sparse one.

    None of a quantised or nested one, which no forward pass changes.
    """
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return [] if tensor.is_quantized or tensor.is_nested else [tensor]


def tensor_values(records: list[ModuleRecord], buffers: bool) -> list[TensorRecord]:
    """Tensors that modules hold beside their parameters, with copies, for :func:`write_back`.

    Args:
        records: Of the modules.
        buffers: Also the registered ones.
    """
    found: dict[int, Tensor] = {}
    for record in records:
        registered = record.attributes.get("_buffers", {}).values() if buffers else ()
        for value in (*registered, *record.attributes.values()):
            if isinstance(value, Tensor) and not (
                isinstance(value, nn.Parameter) or is_lazy(value)
            ):
                found.setdefault(id(value), value)
    # Tensors made under inference mode have no version counter, and can't be changed in place.
    tensors = [tensor for tensor in found.values() if not tensor.is_inference()]
    return [TensorRecord(tensor) for tensor in tensors]


@torch.no_grad()
def write_back(saved: list[TensorRecord]) -> None:
    """Give tensors that were changed in place their values back."""
    for tensor in saved:
        tensor.restore()
