"""Fashion-MNIST from its idx files, read with gzip and struct alone."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from passportize.data.splits import check_split
from passportize.errors import DatasetError

__all__ = ["DEBIAN_FASHION_MNIST", "load_fashion_mnist", "read_idx"]

DEBIAN_FASHION_MNIST = "/usr/share/datasets/fashion-mnist"
"""Where the Debian package ``dataset-fashion-mnist`` puts the files."""

_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def load_fashion_mnist(
    split: str = "train", root: str | os.PathLike[str] = DEBIAN_FASHION_MNIST
) -> tuple[Tensor, Tensor]:
    """Load Fashion-MNIST: 60,000 train and 10,000 test images of clothes, 28 x 28 pixels.

    Source: H. Xiao, K. Rasul and R. Vollgraf, Fashion-MNIST, 2017 (MIT licence). Debian carries
    the files: ``apt-get install dataset-fashion-mnist``.

    Args:
        split: ``"train"`` or ``"test"``.
        root: Folder with the four idx files, gzipped or not.

    Returns:
        Images, float32 ``[N, 1, 28, 28]`` in [0, 1], and labels, int64 ``[N]`` in 0..9.

    Raises:
        DatasetError: A file is missing or damaged.
        InvalidArgument: ``split`` is neither ``"train"`` nor ``"test"``.
    """
    check_split(split)
    images, labels = (read_idx(_find(Path(root), name)) for name in _FILES[split])
    if images.dim() != 3 or labels.shape != images.shape[:1]:
        raise DatasetError(
            f"the {split} files in {root} do not fit together: images {tuple(images.shape)}, "
            f"labels {tuple(labels.shape)}"
        )
    return images.unsqueeze(1).to(torch.float32) / 255.0, labels.to(torch.int64)


def read_idx(path: Path) -> Tensor:
    """Read one idx file of unsigned bytes, gzipped or not.

    The format: two zero bytes, the type (8 for unsigned byte), the number of dimensions, each
    dimension as a big-endian 32-bit integer, then the values (Y. LeCun, the MNIST database).

    Returns:
        uint8, shaped as the file says.

    Raises:
        DatasetError: The file cannot be read or is no such file.
    """
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise DatasetError(f"{path} is no idx file of unsigned bytes")
    rank = data[3]
    if len(data) < 4 + 4 * rank:
        raise DatasetError(f"{path} ends inside its header")
    shape = struct.unpack(f">{rank}I", data[4 : 4 + 4 * rank])
    values = memoryview(data)[4 + 4 * rank :]
    if len(values) != math.prod(shape):
        raise DatasetError(f"{path} holds {len(values)} values where {shape} were announced")
    return torch.frombuffer(bytearray(values), dtype=torch.uint8).reshape(shape)


def _find(root: Path, name: str) -> Path:
    for path in (root / f"{name}.gz", root / name):
        if path.is_file():
            return path
    raise DatasetError(
        f"{root} holds no {name}[.gz]: install the Debian package dataset-fashion-mnist, or pass "
        "the folder with the four idx files"
    )
