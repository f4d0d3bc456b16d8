"""The small point-cloud models of the suite: how to build, feed and label them; anchors."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import tests.support.point_cloud_attention as attention
import tests.support.point_cloud_dense as dense
import tests.support.point_cloud_hierarchical as hierarchical

CLASSES = 5
POINTS = 48


def _pyg_models() -> ModuleType:
    """The PyG models; importing PyG itself warns about its use of ``torch.jit.script``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return importlib.import_module("tests.support.point_cloud_pyg")


@dataclass(frozen=True)
class Case:
    """A model of the test suite.

    Attributes:
        factory: Builds the model for a number of classes.
        anchors: Expected weight of each norm that runs; several where an add or a tied weight
            leaves a choice, the nearest first.
        unreached: Norms that never run.
        batch_major: Whether every input and output tensor has one row per cloud; packed batches
            of nodes are not.
    """

    factory: Callable[[int], nn.Module]
    anchors: Mapping[str, tuple[str, ...]]
    unreached: frozenset[str] = field(default_factory=frozenset)
    batch_major: bool = True

    def build(self, seed: int = 0) -> nn.Module:
        """The model, initialised from ``seed``, in training mode."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.factory(CLASSES)
            if any(nn.parameter.is_lazy(parameter) for parameter in model.parameters()):
                model.eval()(*self.inputs(seed, 2))
        return model.train()

    def inputs(self, seed: int, batch: int) -> tuple[Tensor, ...]:
        """Arguments of one forward: clouds whose class shows in the spread along each axis."""
        generator = torch.Generator().manual_seed(seed)
        clouds = torch.randn(batch, 3, POINTS, generator=generator)
        spread = torch.rand(CLASSES, 3, 1, generator=torch.Generator().manual_seed(7)) + 0.3
        clouds = clouds * spread[self.labels(seed, batch)]
        if self.batch_major:
            return (clouds,)
        pos = clouds.transpose(1, 2).reshape(-1, 3)
        index = torch.arange(batch).repeat_interleave(POINTS)
        edges: Tensor = _pyg_models().knn_edges(pos, index, 6)
        return pos, edges, index

    def labels(self, seed: int, batch: int) -> Tensor:
        """Class of each cloud of :meth:`inputs`."""
        generator = torch.Generator().manual_seed(seed + 1000)
        return torch.randint(0, CLASSES, (batch,), generator=generator)

    @staticmethod
    def logits(output: Any) -> Tensor:
        """The class scores ``[B, CLASSES]`` of an output, which may be a tuple."""
        scores: Tensor = output[0] if isinstance(output, tuple) else output
        return scores


def numbered(prefix: str, pairs: str) -> dict[str, tuple[str, ...]]:
    """``numbered("feat.", "bn1:conv1 bn2:conv2")`` -> norm names to weight names."""
    split = (pair.split(":") for pair in pairs.split())
    return {f"{prefix}{norm}": (f"{prefix}{weight}.weight",) for norm, weight in split}


TRANSFORM_NET = "bn1:conv1 bn2:conv2 bn3:conv3 bn4:fc1 bn5:fc2"

POINT_CLOUD_MODELS: dict[str, Case] = {
    "pointnet": Case(
        dense.PointNet,
        numbered("feat.stn.", TRANSFORM_NET)
        | numbered("feat.", "bn1:conv1 bn2:conv2 bn3:conv3")
        | numbered("feat.fstn.", TRANSFORM_NET)
        | numbered("", "bn1:fc1 bn2:fc2"),
    ),
    "dgcnn": Case(
        dense.DGCNN,
        numbered("", "bn1:conv1.0 bn2:conv2.0 bn3:conv3.0 bn4:conv4.0 bn6:linear1 bn7:linear2"),
    ),
    "pointnet2": Case(
        hierarchical.PointNet2,
        {
            f"sa{i}.mlp_bns.{j}": (f"sa{i}.mlp_convs.{j}.weight",)
            for i in (1, 2, 3)
            for j in (0, 1, 2)
        }
        | numbered("", "bn1:fc1 bn2:fc2"),
    ),
    "pointmlp": Case(
        hierarchical.PointMLP,
        numbered("", "embedding.net.1:embedding.net.0 classifier.1:classifier.0")
        | {f"transfers.{i}.net.1": (f"transfers.{i}.net.0.weight",) for i in (0, 1)}
        | {
            f"{stage}_blocks.{i}.net{j}.1": (f"{stage}_blocks.{i}.net{j}.0.weight",)
            for stage in ("pre", "pos")
            for i in (0, 1)
            for j in (1, 2)
        },
    ),
    "pct": Case(
        attention.PCT,
        numbered("", "bn1:conv1 bn2:conv2 conv_fuse.1:conv_fuse.0 bn6:linear1")
        | {
            f"sa{i}.{norm}": tuple(f"sa{i}.{weight}.weight" for weight in weights.split())
            for i in (1, 2)
            for norm, weights in (
                ("q_norm", "q_conv k_conv"),
                ("k_norm", "q_conv k_conv"),
                ("after_norm", "trans_conv"),
            )
        },
    ),
    "layernorm_transformer": Case(
        attention.PointTransformer,
        {
            "embed.1": ("embed.0.weight",),
            "blocks.0.norm1": ("pos_embed.2.weight", "embed.3.weight"),
            "blocks.0.norm2": ("blocks.0.proj.weight", "pos_embed.2.weight", "embed.3.weight"),
            "blocks.1.norm1": ("blocks.0.mlp.2.weight", "blocks.0.proj.weight"),
            "blocks.1.norm2": ("blocks.1.proj.weight", "blocks.0.mlp.2.weight"),
            "norm": ("blocks.1.mlp.2.weight", "blocks.1.proj.weight"),
        },
    ),
    "plain_list": Case(dense.PlainListNet, numbered("", "bn1:conv1 bn2:conv2")),
    "caching": Case(dense.CachingNet, numbered("", "norm:conv head_norm:head_conv")),
    "idle_norms": Case(
        dense.IdleNormsNet,
        numbered("", "norm:conv norm2:conv2"),
        unreached=frozenset({"decoder.1", "mask_norm"}),
    ),
}


def _pyg(name: str, *args: Any) -> Callable[[int], nn.Module]:
    """A factory that imports PyG only when it is called."""

    def build(classes: int) -> nn.Module:
        model: nn.Module = getattr(_pyg_models(), name)(*args[:1], classes, *args[1:])
        return model

    return build


def _mlp(prefix: str, count: int) -> dict[str, tuple[str, ...]]:
    """Norms of a PyG MLP: the wrapper's inner batch norm and the linear layer before it."""
    return {f"{prefix}.norms.{i}.module": (f"{prefix}.lins.{i}.weight",) for i in range(count)}


POINT_CLOUD_MODELS |= {
    "pyg_pointnet_conv": Case(
        _pyg("PointNetConvNet"),
        _mlp("conv1.local_nn", 1)
        | _mlp("conv1.global_nn", 1)
        | _mlp("conv2.local_nn", 1)
        | _mlp("head", 2),
        batch_major=False,
    ),
    "pyg_edge_conv": Case(
        _pyg("EdgeConvNet"),
        _mlp("conv1.nn", 1) | _mlp("conv2.nn", 1) | _mlp("head", 2),
        batch_major=False,
    ),
    "pyg_point_transformer": Case(
        _pyg("PointTransformerNet"),
        _mlp("mlp_input", 1)
        | _mlp("blocks.0.conv.attn_nn", 1)
        | _mlp("blocks.1.conv.attn_nn", 1)
        | _mlp("mlp_middle", 1)
        | _mlp("head", 1),
        batch_major=False,
    ),
    "pyg_gin": Case(
        _pyg("GraphNet", "gin"),
        {f"gnn.convs.{i}.nn.norms.0.module": (f"gnn.convs.{i}.nn.lins.0.weight",) for i in range(3)}
        | {f"gnn.norms.{i}.module": (f"gnn.convs.{i}.nn.lins.1.weight",) for i in range(3)},
        batch_major=False,
    ),
    "pyg_gcn": Case(
        _pyg("GraphNet", "gcn"),
        {f"gnn.norms.{i}.module": (f"gnn.convs.{i}.lin.weight",) for i in range(3)},
        batch_major=False,
    ),
    "pyg_act_first": Case(
        _pyg("ActFirstNet"), _mlp("local", 3) | _mlp("head", 1), batch_major=False
    ),
}
