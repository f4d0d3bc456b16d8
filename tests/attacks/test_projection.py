"""A thief with inputs leaves of every weight what they use: what that costs, and what it leaves."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import passportize as pp
from passportize.attacks import project_weights, unused_shares
from passportize.errors import InvalidArgument
from passportize.release.claim import claim_of
from tests.support.small_protected import accuracy, images, protected

PASSPORT = pp.Passport.generate(owner="Acme", secret=bytes(range(3, 35)))


def test_what_the_inputs_use_stays() -> None:
    torch.manual_seed(0)
    x = torch.randn(500, 8) @ torch.randn(8, 80)
    model = nn.Sequential(nn.Linear(80, 70), nn.ReLU(), nn.Linear(70, 4))
    before, other = copy.deepcopy(model), torch.randn(500, 80)
    with torch.no_grad():
        assert project_weights(model, [x], energy=1 - 1e-6) == ["0.weight", "2.weight"]
        torch.testing.assert_close(model(x), before(x), atol=1e-3, rtol=1e-3)
        assert (model(other) - before(other)).square().mean() > 0.01
    assert torch.linalg.matrix_rank(model[0].weight.double(), atol=1e-2) == 8


def test_shrinking_is_the_fit_with_a_penalty() -> None:
    torch.manual_seed(0)
    x, model = torch.randn(300, 70), nn.Sequential(nn.Linear(70, 5, bias=False))
    y = model(x).detach()
    project_weights(model, [x], energy=None, shrink=0.3)
    penalty = 0.3 * x.square().mean() * len(x)
    fitted = torch.linalg.solve(x.T @ x + penalty * torch.eye(70), x.T @ y).T
    torch.testing.assert_close(model[0].weight, fitted, atol=1e-4, rtol=1e-3)


def marked(ridge: float) -> tuple[nn.Module, pp.Claim]:
    config = pp.PassportConfig.trained(bits=150)
    model = pp.passportize(protected("signature").copy(), PASSPORT, config=config).eval()
    calibration, _ = images("train")
    pp.embed_signature(model, calibration=calibration[:256].split(64), ridge=ridge)
    claim = claim_of(model)
    return pp.unpassportize(model), claim


@pytest.mark.parametrize("attack", [{"energy": 0.999}, {"energy": None, "shrink": 0.01}])
def test_a_mark_with_the_default_ridge_outlives_the_accuracy(attack: dict[str, float]) -> None:
    model, claim = marked(1.0)
    inputs, _ = images("train")
    with torch.no_grad():
        before = accuracy(model(images("test")[0]))
    project_weights(model, inputs[256:512].split(64), **attack)
    with torch.no_grad():
        lost = before - accuracy(model(images("test")[0]))
    verdict = pp.verify(model, PASSPORT, claim)
    assert verdict.accepted and verdict.strength > 80
    assert lost > -0.5


def test_what_hides_well_is_seen_by_whoever_has_data() -> None:
    """Where next to nothing keeps the change from hiding, marked rows stand out; not by default."""

    def seen(ridge: float) -> float:
        model, _ = marked(ridge)
        shares = unused_shares(model, [images("train")[0][:256]])
        before = unused_shares(protected("signature").plain, [images("train")[0][:256]])
        return float(max((shares[name] - before[name]).abs().max() for name in shares))

    assert seen(1e-6) > 2 * seen(1.0)


@pytest.mark.parametrize(
    "settings",
    [
        {"energy": 0.9, "shrink": 0.1},
        {"energy": None},
        {"energy": 1.5},
        {"energy": None, "shrink": 0.0},
    ],
)
def test_what_makes_no_sense(settings: dict[str, float | None]) -> None:
    with pytest.raises(InvalidArgument):
        project_weights(nn.Linear(3, 3), [torch.zeros(2, 3)], **settings)
