"""Public point-cloud models: where their code is, and how it runs without CUDA."""

from __future__ import annotations

import importlib.util
import math
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from torch import Tensor, nn

from passportize.data import SHAPE_CLASSES

CLASSES = len(SHAPE_CLASSES)


@dataclass(frozen=True)
class Public:
    """A public model: where its code is, how it is built, and how it is trained here."""

    label: str
    repository: str
    commit: str
    file: str
    build: Callable[[ModuleType], nn.Module]
    points: int
    steps: int = 60
    batch: int = 4


def _dgcnn(module: ModuleType) -> nn.Module:
    arguments = SimpleNamespace(k=20, emb_dims=1024, dropout=0.5)
    made: nn.Module = getattr(module, "DGCNN", None) or module.DGCNN_cls
    return made(arguments, CLASSES)  # type: ignore[operator, no-any-return]


YANX27 = ("yanx27+Pointnet_Pointnet2_pytorch", "eb64fe0b4c24055559cea26299cb485dcb43d8dd")
POINTMLP = ("ma-xu+pointMLP-pytorch", "1ab7f04e88d2aeb8fd16921a2b2fc4fba950b6df")
MLP_FILE = "classification_ModelNet40/models/pointmlp.py"

MODELS = [
    Public(
        "pointnet_cls",
        *YANX27,
        "models/pointnet_cls.py",
        lambda module: module.get_model(CLASSES, normal_channel=False),
        256,
    ),
    Public(
        "DGCNN (WangYueFt)",
        "WangYueFt+dgcnn",
        "f765b469a67730658ba554e97dc11723a7bab628",
        "pytorch/model.py",
        _dgcnn,
        128,
    ),
    Public(
        "DGCNN_cls (antao97)",
        "antao97+dgcnn.pytorch",
        "07d534c2702905010ec9991619f552d8cacae45b",
        "model.py",
        _dgcnn,
        128,
    ),
    Public(
        "PCT",
        "Strawberry-Eat-Mango+PCT_Pytorch",
        "0199a3b8c89274aeeebb5634c82a47573c8be492",
        "model.py",
        lambda module: module.Pct(SimpleNamespace(dropout=0.5), CLASSES),
        512,
    ),
    Public(
        "pointnet2_cls_ssg",
        *YANX27,
        "models/pointnet2_cls_ssg.py",
        lambda module: module.get_model(CLASSES, normal_channel=False),
        512,
        80,
    ),
    Public(
        "PointMLP-elite",
        *POINTMLP,
        MLP_FILE,
        lambda module: module.pointMLPElite(CLASSES),
        512,
        120,
    ),
    Public(
        "pointnet2_cls_msg",
        *YANX27,
        "models/pointnet2_cls_msg.py",
        lambda module: module.get_model(CLASSES, normal_channel=False),
        512,
        40,
        3,
    ),
    Public("PointMLP", *POINTMLP, MLP_FILE, lambda module: module.pointMLP(CLASSES), 512, 12, 3),
]


def farthest_points(xyz: Tensor, count: int) -> Tensor:
    """What the CUDA extension computes: indices ``[B, count]`` of points far from each other."""
    rows = torch.arange(len(xyz))
    distance = torch.full(xyz.shape[:2], math.inf)
    farthest = torch.zeros(len(xyz), dtype=torch.long)
    chosen = []
    for _ in range(count):
        chosen.append(farthest)
        centre = xyz[rows, farthest].unsqueeze(1)
        distance = torch.minimum(distance, (xyz - centre).square().sum(-1))
        farthest = distance.argmax(-1)
    return torch.stack(chosen, 1)


def stand_in() -> None:
    """Puts ``pointnet2_ops`` in place, as far as the models use it."""
    utilities = types.ModuleType("pointnet2_ops.pointnet2_utils")
    utilities.furthest_point_sample = farthest_points  # type: ignore[attr-defined]
    utilities.gather_operation = lambda points, index: torch.gather(  # type: ignore[attr-defined]
        points, 2, index.long().unsqueeze(1).expand(-1, points.shape[1], -1)
    )
    package = types.ModuleType("pointnet2_ops")
    package.pointnet2_utils = utilities  # type: ignore[attr-defined]
    sys.modules["pointnet2_ops"] = package
    sys.modules["pointnet2_ops.pointnet2_utils"] = utilities


def load(path: Path) -> ModuleType:
    """A module from a file; its neighbours can be imported, and are forgotten afterwards."""
    known = set(sys.modules)
    sys.path.insert(0, str(path.parent))
    try:
        spec = importlib.util.spec_from_loader(path.stem, loader=None)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        source = path.read_text().replace("torch.device('cuda')", "torch.device('cpu')")
        exec(compile(source, str(path), "exec"), module.__dict__)
        return module
    finally:
        sys.path.remove(str(path.parent))
        for name in set(sys.modules) - known:
            origin = getattr(sys.modules[name], "__file__", None) or ""
            if origin.startswith(str(path.parent)):
                del sys.modules[name]
