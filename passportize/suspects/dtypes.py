"""Types of numbers by the names that several formats use."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from passportize.suspects.refusals import Damaged
from passportize.suspects.window import Window

__all__ = ["STORAGES", "TORCH_NAMES", "from_numpy", "nibbles"]

TORCH_NAMES: dict[str, torch.dtype] = {
    name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)
}
"""Types of torch by their names in it."""

STORAGES: dict[str, torch.dtype] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    # Quantised ones as the integers that they hold; scale and zero point come with the tensor.
    "QInt8Storage": torch.int8,
    "QUInt8Storage": torch.uint8,
    "QInt32Storage": torch.int32,
    "UntypedStorage": torch.uint8,
}
"""Types of torch by the name of the storage class in a pickle."""

# The rest are strings, times, objects and the like, which are no weights.
_NUMPY = {
    "f2": torch.float16,
    "f4": torch.float32,
    "f8": torch.float64,
    "i1": torch.int8,
    "i2": torch.int16,
    "i4": torch.int32,
    "i8": torch.int64,
    "u1": torch.uint8,
    "u2": torch.uint16,
    "u4": torch.uint32,
    "u8": torch.uint64,
    "b1": torch.bool,
    # numpy has no bfloat16 of its own and writes that of ml_dtypes as two bytes without a meaning.
    "V2": torch.bfloat16,
}


def from_numpy(
    window: Window, start: int, kind: str, shape: tuple[int, ...], fortran: bool, what: str
) -> Tensor | None:
    """An array as numpy keeps it.

    Args:
        window: Where it lies.
        start: Where it begins.
        kind: numpy's short name of the type, ``"<f4"`` say.
        shape: Its shape.
        fortran: Whether the first dimension runs fastest.
        what: Its name, for errors.

    Returns:
        The tensor, None if the type is none of numbers.

    Raises:
        Damaged: It reaches beyond the end.
    """
    dtype = _NUMPY.get(kind.lstrip("<>|="))
    if dtype is None:
        return None
    stored = tuple(reversed(shape)) if fortran else shape
    tensor = window.tensor(start, dtype, stored, what)
    if kind.startswith(">") and dtype.itemsize > 1:
        swapped = tensor.reshape(-1, 1).view(torch.uint8).flip(1).contiguous()
        tensor = swapped.view(dtype).reshape(stored)
    return tensor.permute(*reversed(range(len(shape)))) if fortran else tensor


def nibbles(packed: Tensor, size: int, signed: bool, what: str, *, low_first: bool = True) -> Any:
    """Numbers of four bits, two in a byte.

    Args:
        packed: Bytes, uint8 of one dimension.
        size: How many there are.
        signed: Whether they run from -8 to 7, not from 0 to 15.
        what: Their name, for errors.
        low_first: Whether the low half of a byte comes first.

    Returns:
        int8 ``[size]``.

    Raises:
        Damaged: There are fewer.
    """
    if size > 2 * packed.numel():
        raise Damaged(f"{what} has {packed.numel()} bytes for {size} numbers of four bits")
    halves = [packed & 15, packed >> 4]
    both = torch.stack(halves if low_first else halves[::-1], dim=-1).reshape(-1)[:size]
    numbers = both.to(torch.int8)
    return torch.where(numbers > 7, numbers - 16, numbers) if signed else numbers
