"""Files that numpy writes: one array, or an archive of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from passportize.suspects.dtypes import from_numpy
from passportize.suspects.refusals import Damaged, Unsupported
from passportize.suspects.source import Found, Source
from passportize.suspects.window import Window

__all__ = ["is_npy", "is_npz", "read_npy", "read_npz"]

_MAGIC = b"\x93NUMPY"


def is_npy(source: Source) -> bool:
    """Whether a file is one array."""
    return source.head(len(_MAGIC)) == _MAGIC


def is_npz(source: Source) -> bool:
    """Whether a file is an archive of arrays."""
    archive = source.archive
    return archive is not None and any(name.endswith(".npy") for name in archive.names)


def read_npy(source: Source) -> Found:
    """The array of a file, under the file's name."""
    tensor = _array(source.window, source.path.stem)
    if tensor is None:
        raise Unsupported("it holds Python objects or text, no numbers", "save the numbers alone")
    return Found({source.path.stem: tensor})


def read_npz(source: Source) -> Found:
    """The arrays of an archive, by their names in it."""
    found = Found({})
    left_out = []
    for name in source.members.names:
        if name.endswith(".npy"):
            label = name.removesuffix(".npy")
            tensor = _array(source.members.member(name), label)
            if tensor is None:
                left_out.append(label)
            else:
                found.tensors[label] = tensor
    if left_out:
        found.notes.append(
            f"{len(left_out)} arrays of Python objects or text were not looked at: "
            f"{', '.join(left_out[:3])}{' ...' if len(left_out) > 3 else ''}"
        )
    return found


def _array(window: Window, name: str) -> Tensor | None:
    """One array, None if it holds no numbers."""
    stream: Any = window.stream()
    try:
        version = np.lib.format.read_magic(stream)
        reader = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if reader is None:
            # Version 3 differs in the names of fields alone, which no array of numbers has.
            raise Unsupported(f"{name} is of version {version} of the format", "save it anew")
        shape, fortran, kind = reader(stream)
    except (ValueError, SyntaxError, TypeError, OverflowError) as error:
        detail = str(error).partition("\n")[0][:100]
        raise Damaged(f"the header of {name}: {detail}") from None
    if kind.hasobject:
        return None
    start = stream.tell()
    if math.prod(shape) * kind.itemsize > len(window) - start:
        raise Damaged(f"{name} of shape {shape} has {len(window) - start} bytes")
    return from_numpy(window, start, kind.str, shape, fortran, name)
