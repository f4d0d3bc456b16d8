"""Bytes of a file that nobody vouches for: nothing is given out that is not there.

A file is mapped, not read, so a large one costs what is looked at. Every offset, length and shape
that the file states is held against its size before anything is made of it.
"""

from __future__ import annotations

import io
import math
import mmap
import stat
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from passportize.suspects.refusals import Damaged, Unsupported

__all__ = ["Budget", "Window", "map_file", "tensor_of"]

MOST_DIMENSIONS = 32
# What tensors may take beside the file: quantised weights grow by 8 at most, tied ones count twice.
GROWTH = 32
SPARE = 32 * 2**20
MOST_STEPS = 300_000
"""Fields, tables and entries of one file: about a second's worth, and many thousand layers."""


class Budget:
    """How many bytes of tensors may be made of one file, and in how many steps it may be read.

    A view takes no bytes, but whoever reads the tensors pays for each, so views count as well.

    Args:
        stored: Bytes of the file.
    """

    def __init__(self, stored: int) -> None:
        self.left = SPARE + GROWTH * stored
        self._steps = MOST_STEPS

    def step(self, count: int = 1) -> None:
        """Take steps.

        Raises:
            Unsupported: The file has more parts than any model.
        """
        self._steps -= count
        if self._steps < 0:
            raise Unsupported(
                f"it has more than {MOST_STEPS:,} parts", "get the weights alone, as safetensors"
            )

    def charge(self, size: int, what: str) -> None:
        """Take ``size`` bytes for ``what``.

        Raises:
            Damaged: The file promises far more than it holds.
        """
        self.left -= size
        if self.left < 0:
            raise Damaged(f"with {what} it would unfold to far more than its size")


class Window:
    """A run of bytes, with a check at every access.

    Args:
        data: The bytes.
        budget: Of the file that they belong to.
    """

    def __init__(self, data: memoryview, budget: Budget) -> None:
        self.data = data
        self.budget = budget

    def __len__(self) -> int:
        return len(self.data)

    def part(self, start: int, length: int, what: str) -> Window:
        """A run within this one.

        Raises:
            Damaged: It reaches beyond the end.
        """
        if start < 0 or length < 0 or start + length > len(self.data):
            raise Damaged(
                f"{what} is said to lie at bytes {start} to {start + length} of {len(self.data)}"
            )
        return Window(self.data[start : start + length], self.budget)

    def read(self, start: int, length: int, what: str) -> bytes:
        """Bytes of a run within this one, as :meth:`part`."""
        return bytes(self.part(start, length, what).data)

    def unpack(self, layout: str, start: int, what: str) -> tuple[Any, ...]:
        """Numbers in the notation of :mod:`struct`, as :meth:`part`."""
        return struct.unpack(layout, self.read(start, struct.calcsize(layout), what))

    def stream(self) -> WindowStream:
        """The bytes as a file that is open for reading."""
        return WindowStream(self.data)

    def tensor(self, start: int, dtype: torch.dtype, shape: Sequence[int], what: str) -> Tensor:
        """A dense tensor that lies in the bytes; a view of them.

        Args:
            start: Where it begins.
            dtype: Its type.
            shape: Its shape; rows last.
            what: Its name, for errors.

        Raises:
            Damaged: It reaches beyond the end, or the shape makes no sense.
        """
        size = checked_size(shape, what)
        length = size * dtype.itemsize
        place = self.part(start, length, what)
        self.budget.charge(length, what)
        if not size:
            return torch.empty(tuple(shape), dtype=dtype)
        return tensor_of(place.data, dtype).reshape(tuple(shape))


def tensor_of(data: memoryview | bytearray, dtype: torch.dtype) -> Tensor:
    """All of a non-empty run of bytes as one tensor of one dimension; a view of them."""
    if dtype is torch.bool:
        # Bytes other than 0 and 1 are no truth values to torch.
        return torch.frombuffer(data, dtype=torch.uint8) != 0
    count = len(data) // dtype.itemsize
    return torch.frombuffer(data, dtype=dtype, count=count)


def checked_size(shape: Sequence[int], what: str) -> int:
    """The number of entries of a shape.

    Raises:
        Damaged: The shape makes no sense.
    """
    sound = len(shape) <= MOST_DIMENSIONS and all(
        isinstance(side, int) and 0 <= side < 2**63 for side in shape
    )
    if not sound:
        raise Damaged(f"{what} has no shape that a tensor can have")
    return math.prod(shape)


class WindowStream(io.RawIOBase):
    """A file over bytes in memory, without a copy of them.

    A line ends after 64 kB, whether or not there is a line break: a pickle has no longer one.
    """

    LONGEST_LINE = 2**16

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: len(self._data)}[whence]
        self._place = max(0, base + offset)
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        target = memoryview(buffer).cast("B")
        piece = self._data[self._place : self._place + len(target)]
        target[: len(piece)] = piece
        self._place += len(piece)
        return len(piece)

    def read(self, size: int | None = -1) -> bytes:
        rest = max(0, len(self._data) - self._place)
        length = rest if size is None or size < 0 else min(size, rest)
        piece = bytes(self._data[self._place : self._place + length])
        self._place += length
        return piece

    def readline(self, size: int | None = -1) -> bytes:
        longest = self.LONGEST_LINE if size is None or size < 0 else min(size, self.LONGEST_LINE)
        piece = bytes(self._data[self._place : self._place + longest])
        line = piece[: piece.find(b"\n") + 1] or piece
        self._place += len(line)
        return line


def map_file(path: Path, budget: Budget | None = None) -> Window:
    """Map a file into memory.

    Args:
        path: The file.
        budget: Of the whole that it is a part of; its size is added to it.

    Raises:
        Damaged: It is empty.
        Unsupported: It cannot be opened, or is a pipe, a device or the like.
    """
    try:
        # A pipe would block and a device may never end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise Unsupported("this is not a file", "check the path")
        with path.open("rb") as stream:
            size = stream.seek(0, io.SEEK_END)
            if not size:
                raise Damaged("it is empty")
            # Copy on write: torch takes no bytes that cannot be written to.
            data = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "the path is not valid"
        raise Unsupported(reason, "check the path") from None
    if budget is None:
        budget = Budget(size)
    else:
        budget.left += GROWTH * size
    return Window(data, budget)
