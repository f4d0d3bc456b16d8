"""Packed batches of nodes, per-point outputs: which way both branches get their rows."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import passportize as pp
from passportize.errors import BranchMisuse
from passportize.layers.batch import is_packing
from passportize.layers.model import passport_layers, switch_of
from passportize.surgery.packed import packed_module

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # PyG's own use of torch.jit.script
    import torch_geometric.nn as pyg
    from torch_geometric.data import Data

PASSPORT = pp.Passport.generate(owner="Packed", secret=bytes(range(32)), date="2026-01-01")
CLASSES, POINTS, CLOUDS = 4, 12, 6


class PackedSegmenter(nn.Module):
    """A score for each node, from its features and the largest ones of its graph.

    A pooling function is all that shows that batches are packed, and there are as many rows at
    the end as at the beginning.
    """

    def __init__(self) -> None:
        super().__init__()
        self.local = nn.Linear(3, 16)
        self.deep = nn.Linear(16, 32)
        self.norm1 = nn.BatchNorm1d(32)
        self.mix = nn.Linear(64, 32)
        self.norm2 = nn.BatchNorm1d(32)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, pos: Tensor, batch: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.deep(F.relu(self.local(pos)))))
        pooled = pyg.global_max_pool(x, batch)
        x = torch.cat([x, pooled[batch]], dim=1)
        return self.head(F.relu(self.norm2(self.mix(x))))


class DenseSegmenter(nn.Module):
    """Part segmentation as it is usual: clouds and the category of each, a score per point."""

    flat = False

    def __init__(self) -> None:
        super().__init__()
        self.local = nn.Conv1d(3, 16, 1)
        self.deep = nn.Conv1d(16, 32, 1)
        self.norm1 = nn.BatchNorm1d(32)
        self.category = nn.Embedding(5, 8)
        self.mix = nn.Conv1d(72, 32, 1)
        self.norm2 = nn.BatchNorm1d(32)
        self.head = nn.Conv1d(32, CLASSES, 1)

    def forward(self, clouds: Tensor, category: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.deep(F.relu(self.local(clouds.transpose(1, 2))))))
        pooled = torch.cat([x.amax(2), self.category(category)], dim=1)
        x = torch.cat([x, pooled.unsqueeze(2).expand(-1, -1, x.shape[2])], dim=1)
        x = self.head(F.relu(self.norm2(self.mix(x)))).transpose(1, 2)
        return x.flatten(0, 1) if self.flat else x


class FlatSegmenter(DenseSegmenter):
    """All points of all clouds one behind another in the output."""

    flat = True


def packed(seed: int = 0, sizes: tuple[int, ...] = (5, 9, 1, 7)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    batch = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return torch.randn(len(batch), 3, generator=generator, dtype=torch.float64), batch


def dense(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    clouds = torch.randn(CLOUDS, POINTS, 3, generator=generator, dtype=torch.float64)
    return clouds, torch.tensor([0, 0, 1, 1, 2, 2])


def built(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(1)
    model = kind().double().train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


def scores(output: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, -2), targets.flatten())


def test_per_node_outputs_take_two_passes_and_are_those_of_two_passes():
    model = built(PackedSegmenter)
    assert packed_module(model) is None
    inputs = packed()
    targets = torch.arange(len(inputs[0])) % CLASSES
    pp.passportize(model, PASSPORT, example_inputs=inputs)
    assert switch_of(model).config.passes == "separate"
    expect_two_passes(model, inputs, targets, rows=None)


def test_per_point_outputs_of_dense_clouds_share_one_pass():
    model = built(DenseSegmenter)
    inputs = dense()
    targets = torch.arange(CLOUDS * POINTS).reshape(CLOUDS, POINTS) % CLASSES
    config = pp.PassportConfig.keyed(private_fraction=1.0)
    pp.passportize(model, PASSPORT, config=config, example_inputs=inputs)
    assert switch_of(model).config.passes == "doubled"
    # The categories are in order, as a batch vector is; that they are none was tried.
    assert is_packing(inputs[1], CLOUDS)
    expect_two_passes(model, inputs, targets, rows=CLOUDS)


def expect_two_passes(model: nn.Module, inputs: Any, targets: Tensor, rows: int | None) -> None:
    """The joint step has outputs and gradients of one pass for each branch."""
    twin = copy.deepcopy(model)
    loss = pp.joint_loss(model, inputs, targets, scores)
    assert loss.private_output.shape[0] == len(inputs[0] if rows is None else inputs[0][:rows])
    loss.total.backward()
    public = twin(*inputs)
    with pp.branch(twin, "private"):
        private = twin(*inputs)
    torch.testing.assert_close(loss.output, public)
    torch.testing.assert_close(loss.private_output, private)
    weight = switch_of(model).config.private_weight
    total = scores(public, targets) + weight * scores(private, targets)
    for layer in passport_layers(twin).values():
        penalty = layer.private_factors()[2]
        total = total if penalty is None else total + penalty
    total.backward()
    for (name, one), (_, other) in zip(
        model.named_parameters(), twin.named_parameters(), strict=True
    ):
        torch.testing.assert_close(one.grad, other.grad, msg=name)


@pytest.mark.parametrize(
    ("kind", "inputs"), [(PackedSegmenter, packed()), (FlatSegmenter, dense())]
)
def test_the_first_training_step_finds_it_where_there_is_no_example_input(kind, inputs, caplog):
    model = built(kind)
    pp.passportize(model, PASSPORT)
    assert switch_of(model).config.passes == "doubled"
    rows = model(*inputs).shape[0]
    with caplog.at_level("INFO", "passportize"):
        loss = pp.joint_loss(model, inputs, torch.arange(rows) % CLASSES, scores)
    assert loss.private_output.shape == (rows, CLASSES)
    assert "passes='separate'" in caplog.text


def test_nodes_of_both_branches_never_meet_without_a_check():
    """Rows in and rows out would fit: only the pooling between would mix both branches."""
    model = built(PackedSegmenter)
    pp.passportize(model, PASSPORT, check=False)
    with pytest.raises(BranchMisuse, match=r"config=PassportConfig.keyed\(passes='separate'\)"):
        pp.joint_loss(model, packed(), torch.zeros(22, dtype=torch.long), scores)
    model = built(FlatSegmenter)
    pp.passportize(model, PASSPORT, check=False)
    clouds, categories = dense()
    with pytest.raises(BranchMisuse, match=r"output of shape \(144, 4\).*passes='separate'"):
        pp.joint_loss(model, (clouds, categories.flip(0)), torch.zeros(72), scores)


class OfData(nn.Module):
    """Takes one object that nothing can be appended to."""

    def __init__(self) -> None:
        super().__init__()
        self.net = PackedSegmenter()

    def forward(self, data: Data) -> Tensor:
        return self.net(data.pos, data.batch)


def run_on_packed(model: nn.Module) -> Tensor:
    return model(*packed())


class TwoViews(nn.Module):
    """Dense, with a second input that has no batch dimension: the same template for all."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 32)
        self.norm = nn.BatchNorm1d(32)

    def forward(self, clouds: Tensor, template: Tensor) -> Tensor:
        both = torch.cat([clouds.mean(1), template.mean(0).expand(len(clouds), -1)], dim=1)
        both = both.repeat(1, 2)
        return self.norm(self.linear(both))


@pytest.mark.parametrize(
    ("kind", "inputs", "reason"),
    [
        (PackedSegmenter, packed(), "differ"),
        (PackedSegmenter, packed(sizes=(7, 7)), "differ"),
        (PackedSegmenter, run_on_packed, "differ"),
        (OfData, Data(pos=packed()[0], batch=packed()[1]), "nobody knows what a Data"),
        (DenseSegmenter, dense(), ""),
        (TwoViews, (dense()[0], torch.randn(9, 3).double()), ""),
        (TwoViews, {"clouds": dense()[0], "template": torch.randn(9, 3).double()}, ""),
        (PackedSegmenter, None, ""),
    ],
)
def test_packed_inputs_are_told_by_trying(kind, inputs, reason, caplog):
    model = built(kind)
    state = torch.get_rng_state()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with caplog.at_level("INFO", "passportize"):
        pp.passportize(model, PASSPORT, example_inputs=inputs)
    assert switch_of(model).config.passes == ("separate" if reason else "doubled")
    assert reason in caplog.text
    assert torch.equal(torch.get_rng_state(), state) and model.training
    after = pp.host_state_dict(model)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


class GraphClassifier(PackedSegmenter):
    """One row per graph."""

    def forward(self, pos: Tensor, batch: Tensor) -> Tensor:
        return pyg.global_mean_pool(super().forward(pos, batch), batch)


class Aggregated(nn.Module):
    """The pooling is a module here."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 32), nn.BatchNorm1d(32)
        self.pool = pyg.MaxAggregation()

    def forward(self, pos: Tensor, batch: Tensor) -> Tensor:
        return self.pool(self.norm(self.linear(pos)), batch)


def test_pooling_to_graphs_is_seen():
    model = pp.passportize(built(GraphClassifier), PASSPORT, example_inputs=packed())
    assert switch_of(model).config.passes == "separate"
    assert packed_module(Aggregated()) == "pool"


@pytest.mark.parametrize(
    ("vector", "packs"),
    [
        ([0, 0, 1, 1, 1, 2], True),
        ([0, 1, 1, 2, 3, 4], True),
        ([0, 1, 2, 3, 4, 5], False),
        ([0, 0, 0, 0, 0, 0], False),
        ([1, 1, 2, 2, 3, 3], False),
        ([0, 0, 2, 2, 3, 3], False),
        ([0, 0, 1, 0, 1, 1], False),
    ],
)
def test_batch_vectors_are_in_order_and_leave_nothing_out(vector, packs):
    tensor = torch.tensor(vector)
    assert is_packing(tensor, 6) is packs
    assert not is_packing(tensor, 7)
    assert not is_packing(tensor.double(), 6)
