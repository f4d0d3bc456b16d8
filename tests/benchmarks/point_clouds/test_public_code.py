"""What the benchmark on public point-cloud code puts in place of compiled extensions."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("torch_geometric")

from benchmarks.point_clouds.public_code import (
    farthest_points,
    load,
    nearest,
    sample,
    within,
)

SIZES = (5, 9, 3)


def clouds() -> tuple[list[Tensor], Tensor, Tensor]:
    """Clouds, one list of all their points, and where each cloud begins in it."""
    generator = torch.Generator().manual_seed(3)
    parts = [torch.rand(size, 3, generator=generator) for size in SIZES]
    return parts, torch.cat(parts), torch.tensor([0, *SIZES]).cumsum(0)


def test_farthest_points_are_far_and_their_number_follows_the_ratio() -> None:
    line = torch.tensor([[[0.0], [0.1], [1.0], [0.6]]])
    assert farthest_points(line, 4).tolist() == [[0, 2, 3, 1]]
    _, points, begins = clouds()
    chosen = sample(points, begins, 0.5, random_start=False)
    of_cloud = torch.searchsorted(begins, chosen, right=True) - 1
    assert of_cloud.bincount().tolist() == [3, 5, 2]
    assert len(set(chosen.tolist())) == len(chosen)


@pytest.mark.parametrize("k", [2, 4])
def test_nearest_stay_within_their_cloud(k: int) -> None:
    parts, points, begins = clouds()
    pairs = nearest(points, points, begins, begins, k, False, 1)
    expected = {
        (int(begin) + row, int(begin) + column)
        for part, begin in zip(parts, begins, strict=False)
        for row, point in enumerate(part)
        for column in (part - point).norm(dim=1).argsort()[:k].tolist()
    }
    assert set(map(tuple, pairs.T.tolist())) == expected


@pytest.mark.parametrize("others_only", [False, True])
def test_within_a_radius(others_only: bool) -> None:
    parts, points, begins = clouds()
    pairs = within(points, points, begins, begins, 0.5, 32, 1, others_only)
    expected = {
        (int(begin) + row, int(begin) + column)
        for part, begin in zip(parts, begins, strict=False)
        for row, point in enumerate(part)
        for column in ((part - point).norm(dim=1) <= 0.5).nonzero().flatten().tolist()
        if not others_only or row != column
    }
    assert set(map(tuple, pairs.T.tolist())) == expected
    assert within(points, points, begins, begins, 9.0, 2, 1, others_only)[0].bincount().max() == 2


def test_two_repositories_may_have_the_same_folders(tmp_path: Path) -> None:
    path, modules = list(sys.path), set(sys.modules)
    for name in ("one", "two"):
        folder = tmp_path / name / "models"
        folder.mkdir(parents=True)
        (folder / "parts.py").write_text(f"NAME = {name!r}\n")
        (folder / "net.py").write_text(
            "from models.parts import NAME\nimport parts\nimport torch\n"
            "DEVICE = torch.device('cuda')\n"
        )
        net = load(tmp_path, name, "models/net.py")
        assert name == net.NAME == net.parts.NAME
        assert torch.device("cpu") == net.DEVICE
    assert sys.path == path
    assert set(sys.modules) == modules
