"""GGUF files, as llama.cpp and its kin have them.

The header is read here, by https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; blocks of
quantised numbers are undone by the package ``gguf``, which belongs to the format.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from passportize.errors import MissingExtra
from passportize.suspects.refusals import Damaged, Unsupported
from passportize.suspects.source import Found, Source
from passportize.suspects.window import Window, checked_size

__all__ = ["is_gguf", "read_gguf"]

_PLAIN = {
    0: torch.float32,
    1: torch.float16,
    24: torch.int8,
    25: torch.int16,
    26: torch.int32,
    27: torch.int64,
    28: torch.float64,
    30: torch.bfloat16,
}
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_UINT32, _STRING, _ARRAY = 4, 8, 9


def is_gguf(source: Source) -> bool:
    """Whether a file has the mark of GGUF."""
    return source.head(4) == b"GGUF"


class _Reader:
    """A place in the header that moves on."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self.place = 0

    def number(self, layout: str, size: int) -> int:
        self._window.budget.step()
        (value,) = self._window.unpack("<" + layout, self.place, "the header")
        self.place += size
        return int(value)

    def skip(self, length: int) -> None:
        self._window.part(self.place, length, "the header")
        self.place += length

    def text(self) -> str:
        length = self.number("Q", 8)
        start = self.place
        self.skip(length)
        return self._window.read(start, min(length, 4096), "a name").decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> int | None:
        """Step over a value; give it if it is a number of 32 bits."""
        if kind == _STRING:
            self.skip(self.number("Q", 8))
        elif kind == _ARRAY:
            inner, count = self.number("I", 4), self.number("Q", 8)
            if inner in _SIZES:
                self.skip(count * _SIZES[inner])
            elif depth < 4:
                for _ in range(count):
                    self.value(inner, depth + 1)
            else:
                raise Damaged("arrays lie in one another without end")
        elif kind == _UINT32:
            return self.number("I", 4)
        elif kind in _SIZES:
            self.skip(_SIZES[kind])
        else:
            raise Damaged(f"the header has a value of type {kind}, which does not exist")
        return None


def read_gguf(source: Source) -> Found:
    """All tensors by name, dequantised; shapes with the rows first, as in torch."""
    window = source.window
    reader = _Reader(window)
    reader.skip(4)
    version = reader.number("I", 4)
    if version not in (2, 3):
        raise Unsupported(f"it is of version {version}; 2 and 3 are read", "convert it anew")
    tensors, values = reader.number("Q", 8), reader.number("Q", 8)
    alignment = 32
    for _ in range(values):
        name = reader.text()
        value = reader.value(reader.number("I", 4))
        if name == "general.alignment" and value is not None:
            alignment = value
    listed = []
    for _ in range(tensors):
        name = reader.text()
        dimensions = reader.number("I", 4)
        if dimensions > 8:
            raise Damaged(f"{name} has {dimensions} dimensions")
        shape = tuple(reader.number("Q", 8) for _ in range(dimensions))
        listed.append((name, shape[::-1], reader.number("I", 4), reader.number("Q", 8)))
    if not 0 < alignment <= 2**20:
        raise Damaged(f"tensors are aligned to {alignment} bytes")
    start = math.ceil(reader.place / alignment) * alignment
    return Found(
        {
            name: _tensor(window, start + offset, kind, shape, name)
            for name, shape, kind, offset in listed
        }
    )


def _tensor(window: Window, start: int, kind: int, shape: tuple[int, ...], name: str) -> Tensor:
    size = checked_size(shape, name)
    if kind in _PLAIN:
        return window.tensor(start, _PLAIN[kind], shape, name)
    try:
        import gguf
    except ImportError:
        raise MissingExtra(
            f"{name} is quantised in a GGUF file, which the package gguf undoes; run pip install "
            "'passportize[gguf]'"
        ) from None
    try:
        block, length = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise Unsupported(
            f"{name} is of type {kind}, which the installed gguf does not know",
            "install a newer gguf",
        ) from None
    if not shape or shape[-1] % block:
        raise Damaged(f"{name} of shape {shape} is in blocks of {block}")
    window.budget.charge(4 * size, name)
    data = window.tensor(start, torch.uint8, (*shape[:-1], shape[-1] // block * length), name)
    try:
        plain = gguf.dequantize(data.numpy(), gguf.GGMLQuantizationType(kind))
    except NotImplementedError:
        raise Unsupported(
            f"{name} is quantised by a scheme that the installed gguf cannot undo",
            "install a newer gguf",
        ) from None
    return torch.from_numpy(plain).reshape(shape)
