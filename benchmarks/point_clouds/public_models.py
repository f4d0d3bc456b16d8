"""Public point-cloud models: where their code is, how they are built, what they take and give."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from passportize.data.shapes import SHAPE_CLASSES

__all__ = ["CLASSES", "MODELS", "Public"]

CLASSES = len(SHAPE_CLASSES)


def first(output: Any) -> Tensor:
    """The class scores; some models return the features, too."""
    scores: Tensor = output[0] if isinstance(output, tuple) else output
    return scores


def last_axis(output: Any) -> Tensor:
    """Scores of each point, ``[B, N, C] -> [B, C, N]``."""
    return first(output).transpose(1, 2)


def as_is(clouds: Tensor) -> Any:
    """Clouds ``[B, 3, N]``."""
    return clouds


def points_first(clouds: Tensor) -> Any:
    """Clouds ``[B, N, 3]``."""
    return clouds.transpose(1, 2).contiguous()


def rooms(clouds: Tensor) -> Any:
    """Nine channels: the coordinates, and again in the place of colours and of those in a room."""
    return clouds.repeat(1, 3, 1)


def with_category(clouds: Tensor) -> Any:
    """Clouds and one of 16 categories of ShapeNet, one-hot, the same for all."""
    return clouds, F.one_hot(torch.zeros(len(clouds), 1, dtype=torch.long), 16).float()


def packed(clouds: Tensor) -> Any:
    """No features, all points in one list, and for each the number of its cloud."""
    size, _, points = clouds.shape
    return None, points_first(clouds).flatten(0, 1), torch.arange(size).repeat_interleave(points)


@dataclass(frozen=True)
class Public:
    """A public model: where its code is, how it is built, and how it is trained here."""

    label: str
    repository: str
    commit: str
    code: str
    build: Callable[[ModuleType], nn.Module]
    points: int
    steps: int = 60
    batch: int = 4
    inputs: Callable[[Tensor], Any] = as_is
    scores: Callable[[Any], Tensor] = first

    @property
    def origin(self) -> str:
        """Repository or package, and which state of it."""
        return f"{self.repository.replace('+', '/')} @ {self.commit[:10]}"


def _arguments() -> SimpleNamespace:
    return SimpleNamespace(k=20, emb_dims=1024, dropout=0.5)


def _openpoints(module: ModuleType) -> nn.Module:
    config = importlib.import_module("openpoints.utils").EasyConfig()
    head = {"NAME": "ClsHead", "num_classes": CLASSES, "mlps": [512, 256]}
    config.update(
        {
            "NAME": "BaseCls",
            "encoder_args": {"NAME": "PointNetEncoder", "in_channels": 3},
            "cls_args": head | {"norm_args": {"norm": "bn1d"}},
        }
    )
    made: nn.Module = module.build_model_from_cfg(config)
    return made


def _learning3d(module: ModuleType) -> nn.Module:
    made: nn.Module = module.Classifier(module.PointNet(use_bn=True), CLASSES)
    return made


def _yanx27(label: str, points: int, **more: Any) -> Public:
    def build(module: ModuleType) -> nn.Module:
        # Some of them have three more channels for normals, unless told otherwise.
        option = inspect.signature(module.get_model).parameters.keys() & {"normal_channel"}
        made: nn.Module = module.get_model(CLASSES, **dict.fromkeys(option, False))
        return made

    commit = "eb64fe0b4c24055559cea26299cb485dcb43d8dd"
    repository = "yanx27+Pointnet_Pointnet2_pytorch"
    return Public(label, repository, commit, f"models/{label}.py", build, points, **more)


def _torch_pointcloud(label: str, steps: int) -> Public:
    def build(module: ModuleType) -> nn.Module:
        options = {"in_channels": 0, "num_classes": CLASSES}
        made: nn.Module = module.create_model(label, task="classification", **options)
        return made

    package = ("torch-pointcloud", "0.0.18", "torch_pointcloud.models")
    return Public(label, *package, build, 256, steps, inputs=packed)


FXIA22 = (
    "fxia22+pointnet.pytorch",
    "bafbf401e0af19be3262e448c59313fd2be0e421",
    "pointnet/model.py",
)
WANGYUEFT = ("WangYueFt+dgcnn", "f765b469a67730658ba554e97dc11723a7bab628", "pytorch/model.py")
ANTAO97 = ("antao97+dgcnn.pytorch", "07d534c2702905010ec9991619f552d8cacae45b", "model.py")
PCT = ("Strawberry-Eat-Mango+PCT_Pytorch", "0199a3b8c89274aeeebb5634c82a47573c8be492", "model.py")
POINTMLP = (
    "ma-xu+pointMLP-pytorch",
    "1ab7f04e88d2aeb8fd16921a2b2fc4fba950b6df",
    "classification_ModelNet40/models/pointmlp.py",
)
LEARNING3D = (
    "vinits5+learning3d",
    "e74bd8c59fad4b0e8104da3b3349193cdb549943",
    "vinits5+learning3d.models",
)
OPENPOINTS = ("openpoints", "0.1.2", "openpoints.models")

CLASSIFIERS = [
    _yanx27("pointnet_cls", 256),
    _yanx27("pointnet2_cls_ssg", 512, steps=40),
    _yanx27("pointnet2_cls_msg", 512, steps=30, batch=3),
    Public("DGCNN", *WANGYUEFT, lambda module: module.DGCNN(_arguments(), CLASSES), 128),
    Public("DGCNN_cls", *ANTAO97, lambda module: module.DGCNN_cls(_arguments(), CLASSES), 128),
    Public("PCT", *PCT, lambda module: module.Pct(_arguments(), CLASSES), 512, 30),
    Public("PointMLP-elite", *POINTMLP, lambda module: module.pointMLPElite(CLASSES), 512, 60),
    Public("PointMLP", *POINTMLP, lambda module: module.pointMLP(CLASSES), 512, 12, 3),
    Public(
        "PointNetCls",
        *FXIA22,
        lambda module: module.PointNetCls(CLASSES, feature_transform=True),
        256,
    ),
    Public("PointNet", *WANGYUEFT, lambda module: module.PointNet(_arguments(), CLASSES), 256),
    Public("PointNet", *LEARNING3D, _learning3d, 256, inputs=points_first),
    Public("PointNet", *OPENPOINTS, _openpoints, 256, inputs=points_first),
]

SEGMENTATION = [
    _yanx27("pointnet_part_seg", 256, inputs=with_category, scores=last_axis),
    _yanx27("pointnet_sem_seg", 256, inputs=rooms, scores=last_axis),
    _yanx27("pointnet2_part_seg_ssg", 512, steps=20, inputs=with_category, scores=last_axis),
    _yanx27("pointnet2_sem_seg", 512, steps=20, inputs=rooms, scores=last_axis),
    Public(
        "PointNetDenseCls",
        *FXIA22,
        lambda module: module.PointNetDenseCls(CLASSES, feature_transform=True),
        256,
        scores=last_axis,
    ),
    Public(
        "DGCNN_partseg",
        *ANTAO97,
        lambda module: module.DGCNN_partseg(_arguments(), CLASSES),
        128,
        20,
        inputs=with_category,
    ),
]

# Models of today, packed: normalization layers of PyTorch Geometric, LayerNorm in the last three.
PACKED = [
    _torch_pointcloud("pointnet.modelnet40", 60),
    _torch_pointcloud("pointcnn-base", 20),
    _torch_pointcloud("pointnext-sm", 40),
    _torch_pointcloud("point-transformer.modelnet40", 20),
    _torch_pointcloud("point-mae-base.modelnet40.yatian-pang", 20),
    _torch_pointcloud("point-bert-base.modelnet40.xumin-yu", 20),
    _torch_pointcloud("pointgpt-s.modelnet40.guangyan-chen", 20),
]

MODELS = CLASSIFIERS + SEGMENTATION + PACKED
