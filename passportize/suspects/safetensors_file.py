"""Safetensors files; the library maps them and checks every offset."""

from __future__ import annotations

import struct

from safetensors import SafetensorError
from safetensors.torch import load_file

from passportize.release.checkpoint import in_natural_order
from passportize.suspects.refusals import Damaged
from passportize.suspects.source import Found, Source

__all__ = ["is_safetensors", "read_safetensors"]

# Some eighty thousand tensors; what is read as JSON takes twenty times its size.
LARGEST_HEADER = 8 * 2**20


def is_safetensors(source: Source) -> bool:
    """Whether a file begins with the length of a header and the header, which is JSON."""
    return source.head(9)[8:] == b"{"


def read_safetensors(source: Source) -> Found:
    """All tensors, in the order of their names: the file keeps no other."""
    (length,) = struct.unpack("<Q", source.head(8))
    if length > min(LARGEST_HEADER, len(source.window) - 8):
        raise Damaged(f"its header is said to have {length:,} bytes")
    try:
        tensors = load_file(source.path)
    except SafetensorError as error:
        raise Damaged(str(error)[:200]) from None
    for name, tensor in tensors.items():
        source.budget.charge(tensor.nbytes, name)
    return Found(in_natural_order(tensors))
