"""HDF5 files, as Keras writes them, alone or within a ``.keras`` archive; by the library h5py."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from passportize.errors import MissingExtra
from passportize.suspects.refusals import Damaged
from passportize.suspects.source import Found, Source
from passportize.suspects.window import Window

__all__ = ["is_hdf5", "is_keras", "read_hdf5", "read_keras"]

_MAGIC = b"\x89HDF\r\n\x1a\n"
_KERAS = "model.weights.h5"
_NOT_WEIGHTS = ("optimizer",)


def is_hdf5(source: Source) -> bool:
    """Whether a file has the mark of HDF5."""
    return source.head(len(_MAGIC)) == _MAGIC


def is_keras(source: Source) -> bool:
    """Whether a file is an archive of Keras 3."""
    return source.archive is not None and _KERAS in source.archive


def read_hdf5(source: Source) -> Found:
    """All arrays of numbers by the way to them; without those of an optimizer."""
    return _read(source.window)


def read_keras(source: Source) -> Found:
    """As :func:`read_hdf5`, of the weights within the archive."""
    return _read(source.members.member(_KERAS))


def _read(window: Window) -> Found:
    try:
        import h5py
    except ImportError:
        raise MissingExtra(
            "a file of HDF5 is read by the package h5py; run pip install 'passportize[keras]'"
        ) from None
    found = Found({})

    def visit(name: str, item: Any) -> None:
        # An object of the library is worth many fields of a header.
        window.budget.step(20)
        if not isinstance(item, h5py.Dataset) or name.startswith(_NOT_WEIGHTS):
            return
        if item.is_virtual or item.external:
            found.notes.append(f"{name[:80]} lies in other files and was not looked at")
            return
        tensor = _tensor(item, name, window)
        if tensor is not None:
            found.tensors[name.replace("/", ".")] = tensor

    try:
        with h5py.File(window.stream(), "r") as opened:
            # Links are not followed: they may lead into other files.
            opened.visititems(visit)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise Damaged(str(error).partition("\n")[0][:200]) from None
    return found


def _tensor(item: Any, name: str, window: Window) -> Tensor | None:
    """One data set, None if it holds no numbers."""
    if item.shape is None or item.dtype.kind not in "fiub" or not item.shape:
        return None
    size = math.prod(item.shape) * item.dtype.itemsize
    stored = item.id.get_storage_size()
    if size and not stored:
        raise Damaged(f"{name} of shape {item.shape} has no values")
    if size > stored and not item.compression and not item.chunks:
        raise Damaged(f"{name} of shape {item.shape} has {stored} bytes")
    window.budget.charge(2 * size, name)
    array = item[()]
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
