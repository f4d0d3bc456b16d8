"""Load public point-cloud code as it is, and what it takes to run it without CUDA."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import math
import sys
import types
from pathlib import Path
from types import ModuleType

import torch
import torch_geometric.typing
from torch import Tensor

__all__ = ["load", "stand_in"]


def farthest_points(xyz: Tensor, count: int, start: Tensor | None = None) -> Tensor:
    """What the CUDA extension computes: indices ``[B, count]`` of points far from each other."""
    rows = torch.arange(len(xyz))
    distance = torch.full(xyz.shape[:2], math.inf)
    farthest = torch.zeros(len(xyz), dtype=torch.long) if start is None else start
    chosen = []
    for _ in range(count):
        chosen.append(farthest)
        centre = xyz[rows, farthest].unsqueeze(1)
        distance = torch.minimum(distance, (xyz - centre).square().sum(-1))
        farthest = distance.argmax(-1)
    return torch.stack(chosen, 1)


def sample(src: Tensor, ptr: Tensor, ratio: float, random_start: bool) -> Tensor:
    """``pyg::fps``: farthest points of each cloud of a packed list."""
    chosen = []
    for begin, end in itertools.pairwise(ptr.tolist()):
        start = torch.randint(end - begin, (1,)) if random_start else None
        count = math.ceil(ratio * (end - begin))
        chosen.append(begin + farthest_points(src[begin:end].unsqueeze(0), count, start)[0])
    return torch.cat(chosen)


def neighbours(
    x: Tensor, y: Tensor, ptr_x: Tensor | None, ptr_y: Tensor | None, count: int, radius: float
) -> Tensor:
    """Pairs ``[2, E]`` of points of ``y`` and their nearest ones in ``x``, of the same cloud."""
    distance = torch.cdist(y, x)
    if ptr_x is not None and ptr_y is not None:
        of_x, of_y = (
            torch.repeat_interleave(torch.arange(len(ptr) - 1), ptr.diff())
            for ptr in (ptr_x, ptr_y)
        )
        distance = distance.masked_fill(of_y.unsqueeze(1) != of_x.unsqueeze(0), math.inf)
    near, index = distance.topk(min(count, len(x)), dim=1, largest=False)
    row, column = ((near <= radius) & near.isfinite()).nonzero(as_tuple=True)
    return torch.stack([row, index[row, column]])


def nearest(
    x: Tensor,
    y: Tensor,
    ptr_x: Tensor | None,
    ptr_y: Tensor | None,
    k: int,
    cosine: bool,
    num_workers: int,
) -> Tensor:
    """``pyg::knn`` with Euclidean distances."""
    assert not cosine
    return neighbours(x, y, ptr_x, ptr_y, k, math.inf)


def within(
    x: Tensor,
    y: Tensor,
    ptr_x: Tensor | None,
    ptr_y: Tensor | None,
    r: float,
    max_num_neighbors: int,
    num_workers: int,
    ignore_same_index: bool,
) -> Tensor:
    """``pyg::radius``."""
    pairs = neighbours(x, y, ptr_x, ptr_y, max_num_neighbors + ignore_same_index, r)
    return pairs[:, pairs[0] != pairs[1]] if ignore_same_index else pairs


def stand_in() -> None:
    """Put ``pointnet2_ops`` and ``pyg_lib`` in place, as far as the models use them."""
    utilities = types.ModuleType("pointnet2_ops.pointnet2_utils")
    utilities.furthest_point_sample = farthest_points  # type: ignore[attr-defined]
    utilities.gather_operation = lambda points, index: torch.gather(  # type: ignore[attr-defined]
        points, 2, index.long().unsqueeze(1).expand(-1, points.shape[1], -1)
    )
    package = types.ModuleType("pointnet2_ops")
    package.pointnet2_utils = utilities  # type: ignore[attr-defined]
    sys.modules["pointnet2_ops"] = package
    sys.modules["pointnet2_ops.pointnet2_utils"] = utilities
    for name, function in (("fps", sample), ("knn", nearest), ("radius", within)):
        if not hasattr(torch.ops.pyg, name):
            setattr(torch.ops.pyg, name, function)
            setattr(torch_geometric.typing, f"WITH_{name.upper()}", True)


def load(checkouts: Path, repository: str, code: str) -> ModuleType:
    """A module of a checkout: a file by its path, or a module of a package by its dotted name."""
    if code.endswith(".py"):
        return _load_file(checkouts / repository, code)
    # Last, so that what is installed here goes before what came along with the package.
    sys.path += [str(checkouts), str(checkouts / "packages")]
    return importlib.import_module(code)


def _load_file(root: Path, code: str) -> ModuleType:
    """What it imports from its own repository is forgotten: several have a ``models`` folder."""
    path = root / code
    known = set(sys.modules)
    folders = [str(path.parent), str(root)]
    sys.path[:0] = folders
    try:
        spec = importlib.util.spec_from_loader(path.stem, loader=None)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        source = path.read_text().replace("torch.device('cuda')", "torch.device('cpu')")
        exec(compile(source, str(path), "exec"), module.__dict__)
        return module
    finally:
        del sys.path[: len(folders)]
        for name in set(sys.modules) - known:
            imported = sys.modules[name]
            # A folder without __init__.py has no file, only places.
            places = [getattr(imported, "__file__", None) or "", *getattr(imported, "__path__", ())]
            if any(place.startswith(str(root)) for place in places):
                del sys.modules[name]
