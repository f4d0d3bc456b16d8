"""The ShapeNet part set as published: one text file per cloud, lists of the splits as JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from passportize.data.clouds import unit_ball
from passportize.data.splits import check_split
from passportize.errors import DatasetError, InvalidArgument

__all__ = ["SHAPENET_FOLDER", "load_shapenet"]

SHAPENET_FOLDER = "shapenetcore_partanno_segmentation_benchmark_v0_normal"
"""What the published archive unpacks to."""

_CATEGORIES = "synsetoffset2category.txt"


def load_shapenet(
    root: str | os.PathLike[str], split: str = "train", *, points: int = 1024, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Load the 16 categories of the ShapeNet part set (L. Yi et al., 2016; research use).

    Args:
        root: Folder with the archive's folder (:data:`SHAPENET_FOLDER`), or that folder itself.
        split: ``"train"``, which takes the published train and validation lists, or ``"test"``.
        points: Points drawn from each cloud, with repetition where it has fewer.
        seed: Seed of the drawing.

    Returns:
        Clouds in the unit ball, float32 ``[N, points, 3]``, and the category of each, int64
        ``[N]``, in the order of the published list of categories.

    Raises:
        DatasetError: The files are not under ``root``, or one cannot be read; it is named.
        InvalidArgument: ``split`` or ``points`` is none of these.
    """
    check_split(split)
    if points < 1:
        raise InvalidArgument(f"points={points}: give 1 or more")
    top = Path(root) / SHAPENET_FOLDER
    top = top if top.is_dir() else Path(root)
    if not (top / _CATEGORIES).is_file():
        raise DatasetError(
            f"ShapeNet is not under {root}: there is no {_CATEGORIES}; get {SHAPENET_FOLDER}.zip "
            "of https://shapenet.cs.stanford.edu/media, unpack it, and pass the folder"
        )
    generator = torch.Generator().manual_seed(seed)
    clouds, labels = [], []
    try:
        folders = [line.split()[1] for line in (top / _CATEGORIES).read_text().splitlines() if line]
        for part in ("train", "val") if split == "train" else ("test",):
            listed = top / "train_test_split" / f"shuffled_{part}_file_list.json"
            for name in json.loads(listed.read_text()):
                _, folder, cloud = name.split("/")
                clouds.append(_draw(_positions(top / folder / f"{cloud}.txt"), points, generator))
                labels.append(folders.index(folder))
    except (OSError, ValueError, IndexError) as error:
        raise DatasetError(f"ShapeNet under {top} cannot be read: {error}") from error
    return unit_ball(torch.stack(clouds)), torch.tensor(labels)


def _positions(path: Path) -> Tensor:
    """The first three of each line's seven numbers: position, normal, part."""
    numbers = np.array(path.read_bytes().split(), dtype=np.float32)
    if not numbers.size or numbers.size % 7 or not np.isfinite(numbers).all():
        raise ValueError(f"{path} holds no lines of seven finite numbers")
    return torch.from_numpy(numbers.reshape(-1, 7)[:, :3].copy())


def _draw(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    if len(points) >= count:
        return points[torch.randperm(len(points), generator=generator)[:count]]
    return points[torch.randint(len(points), (count,), generator=generator)]
