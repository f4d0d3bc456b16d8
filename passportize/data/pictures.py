"""CIFAR and Caltech through torchvision, as plain tensors; nothing is downloaded."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from passportize.data.splits import check_split, select_split, stratified_split
from passportize.errors import DatasetError, InvalidArgument, MissingExtra

__all__ = ["load_caltech", "load_cifar"]


def load_cifar(
    root: str | os.PathLike[str], split: str = "train", *, classes: int = 10
) -> tuple[Tensor, Tensor]:
    """Load CIFAR-10 or CIFAR-100: 50,000 train and 10,000 test pictures of 32 x 32 pixels.

    Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.

    Args:
        root: Folder with ``cifar-10-batches-py`` or ``cifar-100-python``, as published and as
            torchvision unpacks them; the checksums of all files are compared.
        split: ``"train"`` or ``"test"``.
        classes: 10 or 100.

    Returns:
        Images, float32 ``[N, 3, 32, 32]`` in [0, 1], and labels, int64 ``[N]``.

    Raises:
        DatasetError: A file is missing or is not the published one.
        InvalidArgument: ``split`` or ``classes`` is none of these.
        MissingExtra: torchvision is not installed.
    """
    check_split(split)
    if classes not in (10, 100):
        raise InvalidArgument(f"classes={classes}: CIFAR has versions with 10 and 100")
    name = f"CIFAR{classes}"
    maker = getattr(_datasets(), name)
    try:
        pictures = maker(str(root), train=split == "train")
    except (OSError, RuntimeError, ValueError) as error:
        raise _missing(name, root, str(error)) from error
    images = torch.from_numpy(np.ascontiguousarray(pictures.data)).permute(0, 3, 1, 2)
    labels = torch.tensor(pictures.targets, dtype=torch.int64)
    return images.to(torch.float32).contiguous() / 255.0, labels


def load_caltech(
    root: str | os.PathLike[str],
    split: str = "train",
    *,
    classes: int = 101,
    size: int = 32,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Load Caltech-101 or Caltech-256, every picture scaled to a square.

    Sources: L. Fei-Fei, R. Fergus and P. Perona, CVPR workshop 2004; G. Griffin, A. Holub and
    P. Perona, Caltech-256, 2007. Neither has an official split: a fifth of each class is the test
    part. Folders of things that are no class (``BACKGROUND_Google``, ``257.clutter``) are left out.

    Args:
        root: Folder with ``caltech101/101_ObjectCategories`` or
            ``caltech256/256_ObjectCategories``, as torchvision unpacks them.
        split: ``"train"`` or ``"test"``.
        classes: 101 or 256.
        size: Pixels a side.
        seed: Seed of the split.

    Returns:
        Images, float32 ``[N, 3, size, size]`` in [0, 1], and labels, int64 ``[N]``.

    Raises:
        DatasetError: The folder is missing, or a picture cannot be read.
        InvalidArgument: ``split``, ``classes`` or ``size`` is none of these.
        MissingExtra: torchvision is not installed.
    """
    check_split(split)
    if classes not in (101, 256):
        raise InvalidArgument(f"classes={classes}: Caltech has versions with 101 and 256")
    if not isinstance(size, int) or size < 1:
        raise InvalidArgument(f"size={size!r} must be a whole number of pixels")
    name = f"Caltech{classes}"
    maker = getattr(_datasets(), name)
    # torchvision makes the folder that it misses.
    folder = Path(root) / name.lower() / f"{classes}_ObjectCategories"
    if not folder.is_dir():
        raise _missing(name, root, f"there is no {folder}")
    try:
        pictures = maker(str(root))
        labels = torch.tensor(pictures.y, dtype=torch.int64)
        labels = labels[labels < classes]  # clutter comes last
        chosen = select_split(split, *stratified_split(labels, seed=seed))
        images = torch.stack([_square(pictures[index][0], size) for index in chosen.tolist()])
    except (OSError, RuntimeError, ValueError) as error:
        raise _missing(name, root, str(error)) from error
    return images.to(torch.float32) / 255.0, labels[chosen]


def _square(picture: Any, size: int) -> Tensor:
    """A picture of Pillow as uint8 ``[3, size, size]``."""
    pixels = np.array(picture.convert("RGB").resize((size, size), resample=2))  # bilinear
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _missing(name: str, root: object, reason: str) -> DatasetError:
    return DatasetError(
        f"{name} is not under {root}: {reason.rstrip('.')}. Where there is a network, "
        f"torchvision.datasets.{name}({str(root)!r}, download=True) fetches it"
    )


def _datasets() -> Any:
    try:
        return importlib.import_module("torchvision.datasets")
    except ImportError as error:
        raise MissingExtra(
            "CIFAR and Caltech are read with torchvision, which is not installed: "
            "pip install 'passportize[vision]'"
        ) from error
