"""ModelNet and ShapeNet through PyTorch Geometric, as plain tensors."""

from __future__ import annotations

import importlib
import os
from typing import Any

import torch
from torch import Tensor

from passportize.data.splits import SPLITS
from passportize.errors import DatasetError, InvalidArgument, MissingExtra

__all__ = ["load_modelnet", "load_shapenet"]


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
        root: Folder of :class:`torch_geometric.datasets.ModelNet`, which downloads what is not
            there yet.
        split: ``"train"`` or ``"test"``.
        classes: 10 or 40.
        points: Points drawn by area from each mesh.
        seed: Seed of the drawing.

    Returns:
        Clouds in the unit ball, float32 ``[N, points, 3]``, and labels, int64 ``[N]``.

    Raises:
        DatasetError: The data is not under ``root`` and could not be fetched.
        InvalidArgument: ``split`` or ``classes`` is none of these.
        MissingExtra: PyTorch Geometric is not installed.
    """
    _check_split(split)
    if classes not in (10, 40):
        raise InvalidArgument(f"classes={classes}: ModelNet has versions with 10 and 40")
    datasets = _pyg("torch_geometric.datasets")
    transforms = _pyg("torch_geometric.transforms")
    try:
        meshes = datasets.ModelNet(str(root), str(classes), train=split == "train")
    except (OSError, RuntimeError, ValueError) as error:
        raise DatasetError(f"ModelNet{classes} is not under {root}: {error}") from error
    sample = transforms.SamplePoints(points)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clouds = torch.stack([sample(mesh.clone()).pos for mesh in meshes])
    return _unit_ball(clouds), torch.cat([mesh.y for mesh in meshes])


def load_shapenet(
    root: str | os.PathLike[str], split: str = "train", *, points: int = 1024, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Load the 16 categories of the ShapeNet part set (L. Yi et al., 2016; research use).

    Args:
        root: Folder of :class:`torch_geometric.datasets.ShapeNet`, which downloads what is not
            there yet.
        split: ``"train"`` or ``"test"``.
        points: Points drawn from each cloud, with repetition where it has fewer.
        seed: Seed of the drawing.

    Returns:
        Clouds in the unit ball, float32 ``[N, points, 3]``, and the category of each, int64
        ``[N]``.

    Raises:
        DatasetError: The data is not under ``root`` and could not be fetched.
        InvalidArgument: ``split`` is neither ``"train"`` nor ``"test"``.
        MissingExtra: PyTorch Geometric is not installed.
    """
    _check_split(split)
    datasets = _pyg("torch_geometric.datasets")
    part = "trainval" if split == "train" else "test"
    try:
        clouds = datasets.ShapeNet(str(root), split=part, include_normals=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise DatasetError(f"ShapeNet is not under {root}: {error}") from error
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.stack([_draw(cloud.pos, points, generator) for cloud in clouds])
    return _unit_ball(drawn), torch.cat([cloud.category.reshape(1) for cloud in clouds])


def _draw(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    if len(points) >= count:
        return points[torch.randperm(len(points), generator=generator)[:count]]
    return points[torch.randint(len(points), (count,), generator=generator)]


def _unit_ball(clouds: Tensor) -> Tensor:
    clouds = clouds.to(torch.float32)
    clouds = clouds - clouds.mean(dim=1, keepdim=True)
    radius = clouds.norm(dim=2).amax(dim=1)[:, None, None].clamp(min=1e-12)
    scaled: Tensor = clouds / radius
    return scaled


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise InvalidArgument(f"split={split!r}: use 'train' or 'test'")


def _pyg(module: str) -> Any:

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(
            "ModelNet and ShapeNet are read with PyTorch Geometric, which is not installed: "
            "pip install 'passportize[pyg]'"
        ) from error
