"""Tensors out of the pickles that torch and numpy write, each held against its storage."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from passportize.suspects.dtypes import STORAGES, TORCH_NAMES, from_numpy
from passportize.suspects.pickle_machine import Builder, Made, Name, run_pickle
from passportize.suspects.refusals import Damaged
from passportize.suspects.window import Budget, Window, WindowStream, checked_size, tensor_of

__all__ = ["Array", "Storage", "load_pickle", "storage_name"]


@dataclass(frozen=True)
class Storage:
    """The numbers that one or more tensors are views of.

    Attributes:
        dtype: Their type; bytes if the tensor says it.
        window: Where they lie.
    """

    dtype: torch.dtype
    window: Window

    def of(self, size: int) -> Storage:
        """The same, held against the number of entries that the pickle states."""
        if not isinstance(size, int) or size < 0 or size * self.dtype.itemsize > len(self.window):
            raise Damaged(f"a storage of {size} entries has {len(self.window)} bytes")
        return self

    def cut(self, view: Any) -> Storage:
        """A run of its entries, as the format before archives names it: key, start, length."""
        _, start, length = view
        size = self.dtype.itemsize
        return Storage(self.dtype, self.window.part(start * size, length * size, "a storage"))

    def strided(self, offset: Any, size: Any, stride: Any) -> Tensor:
        """The view of it that a tensor is.

        Raises:
            Damaged: The view has more entries than the storage, or reaches beyond it.
        """
        shape, steps = tuple(size), tuple(stride)
        count = checked_size(shape, "a tensor")
        sound = len(shape) == len(steps) and all(
            isinstance(step, int) and 0 <= step < 2**63 for step in (offset, *steps)
        )
        if not sound:
            raise Damaged(f"a tensor of shape {shape} with strides that make no sense")
        if not count:
            return torch.empty(shape, dtype=self.dtype)
        there = len(self.window) // self.dtype.itemsize
        reach = offset + sum((side - 1) * step for side, step in zip(shape, steps, strict=True))
        if count > there or reach >= there:
            raise Damaged(f"a tensor of shape {shape} in a storage of {there} entries")
        self.window.budget.charge(count * self.dtype.itemsize, f"a tensor of shape {shape}")
        whole = self.window.data[: there * self.dtype.itemsize]
        return tensor_of(whole, self.dtype).as_strided(shape, steps, offset)


class Array:
    """A numpy array on its way: its bytes come after it was made.

    Attributes:
        tensor: The array, None until it is there or if it holds no numbers.
    """

    def __init__(self, budget: Budget, tensor: Tensor | None = None) -> None:
        self.tensor = tensor
        self._budget = budget

    def fill(self, state: Any) -> None:
        """Take what numpy keeps of an array: version, shape, type, order, bytes."""
        if not isinstance(state, tuple) or len(state) != 5:
            return
        _, shape, kind, fortran, data = state
        if isinstance(kind, ArrayType) and isinstance(data, (bytes, bytearray)):
            window = Window(memoryview(bytearray(data)), self._budget)
            self.tensor = from_numpy(window, 0, kind.name, shape, bool(fortran), "a numpy array")


class ArrayType:
    """numpy's type of an array on its way.

    Attributes:
        name: numpy's short name, ``"<f4"`` say.
    """

    def __init__(self, name: Any = "", *_: Any) -> None:
        self.name = str(name)

    def fill(self, state: Any) -> None:
        """Take the order of the bytes."""
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">"):
            self.name = state[1] + self.name.lstrip("<>|=")


def storage_name(identity: Any) -> tuple[torch.dtype, str, int]:
    """Type, key and number of entries of a storage that lies outside of its pickle.

    Raises:
        Damaged: It is described in another way than torch's.
    """
    if isinstance(identity, tuple) and len(identity) >= 5 and identity[0] == "storage":
        kind, key, _, size = identity[1:5]
        dtype = STORAGES.get(kind.name) if isinstance(kind, Name) else None
        if dtype is not None and isinstance(key, str):
            return dtype, key, size
    raise Damaged("a storage is described in a way that torch does not use")


_COMPRESSED = {
    str(layout): layout
    for layout in (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
}


def load_pickle(
    stream: WindowStream,
    budget: Budget,
    storage: Callable[[Any], Storage | None] | None = None,
    nested: Callable[[bytes], Any] | None = None,
) -> Any:
    """What a pickle describes, with its tensors.

    Args:
        stream: The bytes.
        budget: Of the file.
        storage: Gives the storage that a pickle names; tensors are None where it gives None.
        nested: Reads a checkpoint within the pickle, as a plain pickle of tensors has them.
    """
    return run_pickle(stream, budget, _builders(budget, nested), storage)


def _builders(budget: Budget, nested: Callable[[bytes], Any] | None) -> dict[str, Builder]:
    def strided(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor | None:
        return _strided(storage, offset, size, stride)

    def negated(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor | None:
        tensor = _strided(storage, offset, size, stride)
        marks = rest[2] if len(rest) > 2 and isinstance(rest[2], dict) else {}
        return -tensor if tensor is not None and marks.get("neg") else tensor

    def typed(
        storage: Any, offset: Any, size: Any, stride: Any, _: Any, __: Any, dtype: Any, *___: Any
    ) -> Tensor | None:
        kind = TORCH_NAMES.get(dtype.name) if isinstance(dtype, Name) else None
        if kind is None:
            raise Damaged("a tensor of no type")
        if isinstance(storage, Storage):
            storage = Storage(kind, storage.window)
        return _strided(storage, offset, size, stride)

    def quantised(
        storage: Any, offset: Any, size: Any, stride: Any, scheme: Any, *_: Any
    ) -> Tensor | None:
        tensor = _strided(storage, offset, size, stride)
        return None if tensor is None else _dequantised(tensor, scheme, budget)

    def sparse(layout: Any, data: Any, *_: Any) -> Tensor | None:
        return _from_sparse(layout, data, budget)

    def meta(dtype: Any, size: Any, *_: Any) -> Tensor:
        return torch.empty(size, dtype=TORCH_NAMES[dtype.name], device="meta")

    def of_type(function: Any, kind: Any, arguments: Any, state: Any = None) -> Any:
        builder = builders.get(str(function)) if isinstance(function, Name) else None
        # A wrapper subclass holds its numbers in its state.
        return builder(*arguments) if builder else Made(kind, tuple(arguments), state)

    def array(*_: Any) -> Array:
        return Array(budget)

    def from_buffer(data: Any, kind: Any, shape: Any, order: Any = "C", *_: Any) -> Array:
        made = Array(budget)
        made.fill((1, shape, kind, order == "F", data))
        return made

    def of_numpy(value: Any, *_: Any) -> Any:
        return value.tensor if isinstance(value, Array) else value

    builders: dict[str, Builder] = {
        "collections.OrderedDict": _ordered,
        "_codecs.encode": _encoded,
        "torch.Size": tuple,
        "torch._utils._rebuild_tensor": strided,
        "torch._utils._rebuild_tensor_v2": negated,
        "torch._utils._rebuild_tensor_v3": typed,
        "torch._utils._rebuild_qtensor": quantised,
        "torch._utils._rebuild_sparse_tensor": sparse,
        "torch.serialization._get_layout": _first,
        "torch._utils._rebuild_meta_tensor_no_storage": meta,
        "torch._utils._rebuild_parameter": _first,
        "torch._utils._rebuild_parameter_with_state": _first,
        "torch._utils._rebuild_device_tensor_from_numpy": of_numpy,
        "torch._utils._rebuild_device_tensor_from_cpu_tensor": _first,
        "torch._tensor._rebuild_from_type": of_type,
        "torch._tensor._rebuild_from_type_v2": of_type,
        "torch.jit._pickle.build_tensorlist": _first,
        "torch.jit._pickle.restore_type_tag": _first,
        "numpy.dtype": ArrayType,
    }
    for numeric in ("numpy.core", "numpy._core"):
        builders[f"{numeric}.multiarray._reconstruct"] = array
        builders[f"{numeric}.numeric._frombuffer"] = from_buffer
    if nested is not None:
        builders["torch.storage._load_from_bytes"] = nested
    return builders


def _first(value: Any, *_: Any) -> Any:
    return value


def _ordered(pairs: Any = (), *_: Any) -> dict[Any, Any]:
    return {pair[0]: pair[1] for pair in pairs if isinstance(pair[0], (str, int))}


def _encoded(text: Any, encoding: Any = "utf-8", *_: Any) -> bytes:
    if encoding not in ("latin1", "utf-8"):
        raise ValueError("bytes in an unknown encoding")
    return bytes(str(text).encode(encoding))


def _strided(storage: Any, offset: Any, size: Any, stride: Any) -> Tensor | None:
    if storage is None:
        return None
    if not isinstance(storage, Storage):
        raise Damaged("a tensor without a storage")
    return storage.strided(offset, size, stride)


def _dequantised(tensor: Tensor, scheme: Any, budget: Budget) -> Tensor:
    budget.charge(4 * tensor.numel(), "a quantised tensor")
    kind = scheme[0].name if isinstance(scheme[0], Name) else ""
    plain: Tensor = tensor.float()
    if kind == "per_tensor_affine":
        scale, zero = float(scheme[1]), float(scheme[2])
        return (plain - zero) * scale
    if kind.startswith("per_channel_affine"):
        axis = scheme[3]
        shape = [1] * tensor.dim()
        shape[axis] = -1
        steps: Tensor = scheme[1].float().reshape(shape)
        shift: Tensor = scheme[2].float().reshape(shape)
        # With float parameters torch takes the zero point as already scaled.
        if kind.endswith("float_qparams"):
            return plain * steps + shift
        return (plain - shift) * steps
    raise Damaged(f"a tensor quantised by {kind or 'nothing that has a name'}")


def _from_sparse(layout: Any, data: Any, budget: Budget) -> Tensor | None:
    compressed = layout in _COMPRESSED
    parts, size = (data[:3], data[3]) if compressed else (data[:2], data[2])
    if not all(isinstance(part, Tensor) for part in parts):
        raise Damaged("a sparse tensor without its indices or values")
    values, shape = parts[-1], tuple(size)
    checked_size(shape, "a sparse tensor")
    budget.charge(math.prod(shape) * values.dtype.itemsize, f"a sparse tensor of shape {shape}")
    if compressed:
        made = torch.sparse_compressed_tensor(
            parts[0], parts[1], values, shape, layout=_COMPRESSED[layout], check_invariants=True
        )
        return made.to_dense()
    indices = parts[0]
    if indices.dim() != 2 or indices.shape[0] > len(shape):
        raise Damaged(f"a sparse tensor of shape {shape} with indices of other dimensions")
    return torch.sparse_coo_tensor(indices, values, shape, check_invariants=True).to_dense()
