"""Models of PyTorch Geometric: Data objects as input, lazy layers, packed batches."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import passportize as pp
from passportize.errors import UninitializedModule
from passportize.layers.model import switch_of
from passportize.surgery.packed import packed_module
from passportize.surgery.probing import probe
from tests.support.point_cloud_models import POINT_CLOUD_MODELS

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # PyG's own use of torch.jit.script
    import torch_geometric.nn as pyg
    from torch_geometric.data import Data

    from tests.support.point_cloud_pyg import GraphNet

PASSPORT = pp.Passport.generate(owner="PyG", secret=bytes(range(32)), date="2026-01-01")


class DataNet(nn.Module):
    """Takes one Data object, as the library's examples do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = POINT_CLOUD_MODELS["pyg_edge_conv"].build()

    def forward(self, data: Data) -> torch.Tensor:
        return self.net(data.pos, data.edge_index, data.batch)


def test_a_data_object_is_an_input_like_any_other():
    case = POINT_CLOUD_MODELS["pyg_edge_conv"]
    pos, edge_index, batch = case.inputs(0, 6)
    data = Data(pos=pos, edge_index=edge_index, batch=batch)
    model = DataNet()
    planned = pp.plan(model, example_inputs=data)
    assert {site.name for site in planned.sites} == {f"net.{name}" for name in case.anchors}
    pp.passportize(model, PASSPORT, example_inputs=data)
    assert switch_of(model).config.passes == "separate"
    assert probe(model, data).silent == ()
    loss = pp.joint_loss(model, data, case.labels(0, 6), F.cross_entropy)
    loss.total.backward()
    assert loss.private is not None and bool(loss.private.isfinite())


@pytest.mark.parametrize("build", [lambda: GraphNet("gcn", 5), lambda: pyg.Linear(-1, 8)])
def test_lazy_layers_must_have_seen_data(build):
    model = nn.Sequential(build(), nn.BatchNorm1d(8))
    with pytest.raises(UninitializedModule, match="Run the model once"):
        pp.plan(model, example_inputs=torch.randn(4, 16))
    assert any(nn.parameter.is_lazy(parameter) for parameter in model.parameters())


@pytest.mark.parametrize(
    ("model", "packed"),
    [
        (nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)), None),
        (pyg.MLP([4, 8, 8]), None),
        (pyg.MLP([4, 8, 8], norm="graph_norm"), "norms.0"),
        (pyg.GCN(4, 8, 2), "convs.0"),
        (pyg.GCNConv(4, 8), ""),
    ],
)
def test_packed_models_are_told_by_their_modules(model, packed):
    assert packed_module(model) == packed
