"""What the root computes for all sites in one go is what each layer computes alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import passportize as pp
from passportize.layers.gathered import Gathered, can_gather
from passportize.layers.model import passport_layers, switch_of
from passportize.layers.private_branch import Branch
from tests.support.small_joint import PASSPORT


class Mixed(nn.Module):
    """Rows of several lengths, an anchor of two parts, a shared weight, a long row."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 16, 3)
        self.joined = nn.BatchNorm2d(24)
        self.deep = nn.Conv2d(24, 20, 5)
        self.long = nn.BatchNorm2d(20)
        self.again = nn.BatchNorm2d(20)
        self.head = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.joined(torch.cat([self.one(x), self.two(x)], 1)))
        x = torch.relu(self.again(torch.relu(self.long(self.deep(x)))))
        return self.head(x.mean((2, 3)))


def build(config: pp.PassportConfig, **settings: object) -> Mixed:
    torch.manual_seed(0)
    model = Mixed().double()
    x = torch.randn(2, 3, 9, 9).double()
    return pp.passportize(model, PASSPORT, config=config, example_inputs=x, **settings)


OVERRIDES = {"long": {"margin": 1.0, "sign_weight": 0.7}}


def branches(model: nn.Module) -> list[Branch]:
    return [layer.passport for layer in passport_layers(model).values()]


def gathered(model: nn.Module, sign_due: bool = True) -> Gathered:
    return Gathered(branches(model), sign_due)


@pytest.mark.parametrize("sign_due", [False, True])
@pytest.mark.parametrize("overrides", [None, OVERRIDES])
def test_factors(overrides: object, sign_due: bool) -> None:
    model = build(pp.PassportConfig.keyed(), overrides=overrides)
    assert {len(branch.parts) for branch in branches(model)} == {1, 2}
    assert {entries for branch in branches(model) for _, entries in branch.parts} == {27, 256}
    found = gathered(model, sign_due).factors()
    assert found.keys() == {"joined", "long", "again"}
    for branch in branches(model):
        responses = branch.responses()
        gamma, beta = found[branch.site.name]
        turned = torch.cat([1.0 - 2.0 * (side.codes[:, 0] >> 2) for side in branch.secret.sides])
        torch.testing.assert_close(gamma, torch.tanh(turned * responses.gamma).detach())
        torch.testing.assert_close(beta, torch.tanh(responses.beta).detach())
        assert not gamma.requires_grad and not beta.requires_grad


@pytest.mark.parametrize("overrides", [None, OVERRIDES])
def test_penalty_and_its_gradient(overrides: object) -> None:
    together = build(pp.PassportConfig.keyed(), overrides=overrides)
    alone = build(pp.PassportConfig.keyed(), overrides=overrides)
    rows = gathered(together)
    assert [block.width for block in rows.blocks] == [256]
    total = rows.penalty()
    expected = sum(layer.private_factors()[2] for layer in passport_layers(alone).values())
    torch.testing.assert_close(total, expected)
    total.backward()
    expected.backward()
    for name, parameter in together.named_parameters():
        other = alone.get_parameter(name).grad
        assert (parameter.grad is None) == (other is None), name
        if other is not None:
            torch.testing.assert_close(parameter.grad, other)


def test_a_joint_step_takes_them_from_the_root() -> None:
    model = build(pp.PassportConfig.keyed(private_fraction=1.0))
    x, y = torch.randn(8, 3, 9, 9).double(), torch.arange(8) % 5
    loss = pp.joint_loss(model, x, y, F.cross_entropy)
    switch = switch_of(model)
    assert switch.gathered == {"joined", "long", "again"} == switch.factors.keys()
    assert not switch.penalties
    alone = build(pp.PassportConfig.keyed(private_fraction=1.0))
    expected = sum(layer.private_factors()[2] for layer in passport_layers(alone).values())
    torch.testing.assert_close(loss.sign, expected)


def test_nothing_of_a_step_stays_for_a_layer_that_is_called_alone() -> None:
    model = build(pp.PassportConfig.keyed(private_fraction=1.0))
    x, y = torch.randn(8, 3, 9, 9).double(), torch.arange(8) % 5
    pp.joint_loss(model, x, y, F.cross_entropy)
    before = model.long.private_factors()[0]
    with torch.no_grad():
        model.deep.weight.copy_(torch.randn_like(model.deep.weight))
    after = model.long.private_factors()[0]
    assert not torch.allclose(before, after)
    state = switch_of(model).__getstate__()
    assert state["factors"] == {} and state["gathered"] == frozenset()


@pytest.mark.parametrize("preset", ["paper", "keyed"])
def test_what_cannot_be_gathered(preset: str) -> None:
    model = build(getattr(pp.PassportConfig, preset)(), where=["joined", "long"])
    for branch in branches(model):
        assert can_gather(branch) == (preset == "keyed" and branch.bound)


def test_autocast_leaves_the_responses_exact() -> None:
    model = build(pp.PassportConfig.keyed()).float()
    exact = gathered(model).factors()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gathered(model).factors()
        penalty = gathered(model).penalty()
    for name, (gamma, beta) in exact.items():
        assert torch.equal(found[name][0], gamma) and torch.equal(found[name][1], beta)
    assert torch.equal(penalty, gathered(model).penalty())


def test_weights_that_are_elsewhere_are_not_gathered() -> None:
    """FSDP of the first generation leaves weights without storage between the layers' turns."""
    model = build(pp.PassportConfig.keyed())
    assert all(can_gather(branch) for branch in branches(model))
    model.deep.weight.untyped_storage().resize_(0)
    there = {branch.site.name for branch in branches(model) if can_gather(branch)}
    assert there == {"joined"}
