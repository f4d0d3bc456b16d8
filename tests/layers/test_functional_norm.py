"""Norms that are function calls in somebody's forward, with parameters of the model."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import passportize as pp
from passportize.errors import DegenerateSite
from passportize.layers.functional_norm import FunctionalNorm
from passportize.signature.site import Role
from tests.support.round_trip import (
    ModelSnapshot,
    assert_failure_leaves_no_trace,
    assert_round_trip,
    assert_same_bits,
)

PASSPORT = pp.Passport.generate(owner="functional", date="2026-11-28", secret=bytes(range(32)))
CHANNELS = 16


class Block(nn.Module):
    """A conv, and a norm as a function."""

    def __init__(self, function: str) -> None:
        super().__init__()
        self.function = function
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.scale = nn.Parameter(torch.rand(CHANNELS) + 0.5)
        self.shift = nn.Parameter(torch.randn(CHANNELS))
        self.register_buffer("mean", torch.zeros(CHANNELS))
        self.register_buffer("var", torch.ones(CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.function == "batch_norm":
            x = F.batch_norm(x, self.mean, self.var, self.scale, self.shift, self.training)
        elif self.function == "group_norm":
            x = F.group_norm(x, 4, self.scale, self.shift)
        elif self.function == "instance_norm":
            x = F.instance_norm(x, weight=self.scale, bias=self.shift)
        else:
            x = x.movedim(1, -1)
            if self.function == "layer_norm":
                x = F.layer_norm(x, (CHANNELS,), self.scale, bias=self.shift)
            else:
                x = F.rms_norm(x, (CHANNELS,), self.scale)
            x = x.movedim(-1, 1)
        return F.relu_(x)


class Net(nn.Module):
    """Two blocks, one ordinary norm, and a functional norm in the root's forward."""

    def __init__(self, function: str) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 3)
        self.bn = nn.BatchNorm2d(CHANNELS)
        self.blocks = nn.Sequential(Block(function), Block(function))
        self.ln = nn.Parameter(torch.rand(CHANNELS) + 0.5)
        self.head = nn.Linear(CHANNELS, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.bn(self.stem(x))).mean((2, 3))
        return self.head(F.layer_norm(x, (CHANNELS,), self.ln))


FUNCTIONS = ["batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"]


def build(function: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Net(function), torch.randn(4, 3, 8, 8)


@pytest.mark.parametrize("preset", ["keyed", "paper", "signature"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_round_trip(function: str, preset: str) -> None:
    model, x = build(function)
    config = getattr(pp.PassportConfig, preset)()
    layers = assert_round_trip(model, PASSPORT, x, config=config)
    assert sum(isinstance(layer, FunctionalNorm) for layer in layers) == 3


@pytest.mark.parametrize("function", FUNCTIONS)
def test_plan_names_the_sites_and_changes_nothing(function: str) -> None:
    model, x = build(function)
    before = ModelSnapshot.of(model)
    sites = {site.name: site for site in pp.plan(model, example_inputs=x).sites}
    before.check(model)
    assert sites["blocks.0.functional_scale"].anchor.parts[0].weight == "blocks.0.conv.weight"
    assert sites["blocks.1.functional_scale"].anchor.parts[0].weight == "blocks.1.conv.weight"
    assert set(sites) == {
        "bn",
        "functional_ln",
        "blocks.0.functional_scale",
        "blocks.1.functional_scale",
    }
    assert all(site.role is Role.BOUND for site in sites.values())


@pytest.mark.parametrize("function", FUNCTIONS)
def test_public_rows_of_a_joint_pass_are_the_plain_models(function: str) -> None:
    plain, x = build(function)
    model = pp.passportize(copy.deepcopy(plain), PASSPORT, example_inputs=x)
    plain.train()
    model.train()
    expected = plain(x)
    loss = pp.joint_loss(model, x, torch.arange(4), F.cross_entropy)
    torch.testing.assert_close(loss.output, expected)
    host = dict(model.named_buffers())
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(host[name], buffer)


def test_errors_copies_and_files(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = build("layer_norm")
    assert_failure_leaves_no_trace(model, PASSPORT, monkeypatch, example_inputs=x)
    before = ModelSnapshot.of(model)
    pp.passportize(model, PASSPORT, example_inputs=x)
    twin = copy.deepcopy(model)
    assert twin.blocks[0].functional_scale.weight is twin.blocks[0].scale
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (twin, loaded):
        assert_same_bits(model.eval()(x), other.eval()(x), "copy")
        pp.unpassportize(other)
        assert type(other) is Net and type(other.blocks[0]) is Block
    model.train()
    pp.unpassportize(model)
    before.check(model)


def test_a_model_of_which_nothing_can_be_bound_is_left_alone() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(CHANNELS))

        def forward(self, x: Tensor) -> Tensor:
            return F.layer_norm(x, (CHANNELS,), self.scale)

    model = Bare()
    before = ModelSnapshot.of(model)
    with pytest.raises(DegenerateSite):
        pp.passportize(model, PASSPORT, example_inputs=torch.randn(4, CHANNELS))
    before.check(model)


class Upcast(nn.Module):
    """The factors of a child that is never called, and a norm on weights, which is none of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, CHANNELS)
        self.factors = nn.ParameterDict(
            {"g": nn.Parameter(torch.ones(CHANNELS)), "b": nn.Parameter(torch.zeros(CHANNELS))}
        )
        self.second = nn.Linear(CHANNELS, 4)

    def forward(self, x: Tensor) -> Tensor:
        weight = F.layer_norm(self.second.weight, (CHANNELS,))
        x = F.layer_norm(self.first(x), (CHANNELS,), self.factors["g"], self.factors["b"])
        return F.linear(x, weight, self.second.bias)


def test_factors_of_a_child() -> None:
    layers = assert_round_trip(Upcast(), PASSPORT, torch.randn(4, 12))
    assert len(layers) == 1


@pytest.mark.parametrize("function", ["batch_norm", "layer_norm"])
def test_a_claim_is_saved_and_read_from_the_plain_model(function: str, tmp_path: Path) -> None:
    model, x = build(function)
    pp.passportize(model, PASSPORT, example_inputs=x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    for _ in range(5):
        optimizer.zero_grad()
        pp.joint_loss(model, x, torch.arange(4), F.cross_entropy).total.backward()
        optimizer.step()
    carried = pp.signature_accuracy(model)
    path = tmp_path / "functional.claim.safetensors"
    pp.save_claim(model, path)
    verdict = pp.verify(pp.unpassportize(model), PASSPORT, path)
    assert f"{round(carried * 64)} of 64 bits match" in str(verdict)
