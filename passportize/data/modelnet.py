"""ModelNet as published: meshes of triangles in the Object File Format, one folder per class."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from passportize.data.clouds import unit_ball
from passportize.data.splits import check_split
from passportize.data.vrml import sample_surface, triangle_areas
from passportize.errors import DatasetError, InvalidArgument

__all__ = ["load_modelnet", "read_off"]

_HOW_TO_GET = (
    "get {name}.zip of https://modelnet.cs.princeton.edu, unpack it, and pass the folder that "
    "holds {name}/<class>/train/*.off"
)


def load_modelnet(
    root: str | os.PathLike[str],
    split: str = "train",
    *,
    classes: int = 10,
    points: int = 1024,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Load ModelNet10 or ModelNet40 (Z. Wu et al., 3D ShapeNets, CVPR 2015; research use).

    Args:
        root: Folder with ``ModelNet10`` or ``ModelNet40`` as the archive unpacks it, or that
            folder itself.
        split: ``"train"`` or ``"test"``.
        classes: 10 or 40.
        points: Points drawn by area from each mesh.
        seed: Seed of the drawing.

    Returns:
        Clouds in the unit ball, float32 ``[N, points, 3]``, and labels, int64 ``[N]``, in the
        order of the names of classes.

    Raises:
        DatasetError: The meshes are not under ``root``, or one cannot be read; it is named.
        InvalidArgument: ``split``, ``classes`` or ``points`` is none of these.
    """
    check_split(split)
    if classes not in (10, 40):
        raise InvalidArgument(f"classes={classes}: ModelNet has versions with 10 and 40")
    if points < 1:
        raise InvalidArgument(f"points={points}: give 1 or more")
    folders = _classes(Path(root), f"ModelNet{classes}", classes)
    clouds, labels = [], []
    rng = np.random.default_rng(seed)
    for label, folder in enumerate(folders):
        files = sorted((folder / split).glob("*.off"))
        if not files:
            raise DatasetError(f"ModelNet{classes}: {folder / split} holds no *.off file")
        for path in files:
            cloud = sample_surface(read_off(path), points, rng)
            clouds.append(torch.from_numpy(cloud).to(torch.float32))
            labels.append(label)
    return unit_ball(torch.stack(clouds)), torch.tensor(labels)


def read_off(path: Path) -> NDArray[np.float64]:
    """Read a mesh; polygons are cut into fans.

    Returns:
        Corner positions, ``[triangles, 3, 3]``.

    Raises:
        DatasetError: The file cannot be read, is damaged or has no surface.
    """
    try:
        text = path.read_bytes()
        if not text.startswith(b"OFF"):
            raise ValueError("it does not begin with OFF")
        # Some files of the set have no line break behind the first word.
        numbers = np.array(text[3:].split(), dtype=np.float64)
        corners, faces = int(numbers[0]), int(numbers[1])
        positions = numbers[3 : 3 + 3 * corners].reshape(corners, 3)
        triangles = positions[_triangles(numbers[3 + 3 * corners :].astype(np.int64), faces)]
        if not np.isfinite(triangles).all() or not triangle_areas(triangles).any():
            raise ValueError("it has no surface, or a corner that is not finite")
    except (OSError, ValueError, IndexError, OverflowError) as error:
        raise DatasetError(f"{path} is no mesh that can be read: {error}") from error
    return triangles


def _triangles(numbers: NDArray[np.int64], faces: int) -> NDArray[np.int64]:
    """Indices of corners ``[triangles, 3]`` of faces, each written as a count and its corners."""
    plain = numbers[: 4 * faces]
    if len(plain) == 4 * faces and (plain[::4] == 3).all():
        found = plain.reshape(faces, 4)[:, 1:]
    else:
        fans, place = [], 0
        for _ in range(faces):
            count = int(numbers[place])
            polygon = numbers[place + 1 : place + 1 + count]
            if len(polygon) < count or count < 0:
                raise ValueError("it ends inside a face")
            fans += [(polygon[0], polygon[i], polygon[i + 1]) for i in range(1, count - 1)]
            place += 1 + count
        found = np.array(fans, dtype=np.int64).reshape(-1, 3)
    if found.size and found.min() < 0:
        raise ValueError("a face names a corner below 0")
    return found


def _classes(root: Path, name: str, count: int) -> list[Path]:
    """The folder of each class, by name."""
    inner = root / name
    top = inner if inner.is_dir() else root
    folders = sorted(path.parent for path in top.glob("*/train")) if top.is_dir() else []
    if len(folders) != count:
        raise DatasetError(
            f"{name} is not under {root}: {len(folders)} folders with a folder 'train' where "
            f"{count} are expected; {_HOW_TO_GET.format(name=name)}"
        )
    return folders
