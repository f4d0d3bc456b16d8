"""A thief with inputs leaves of every weight what they use: what that costs, and what it leaves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import passportize as pp
from passportize.attacks import drown_weights, project_weights, unused_shares
from passportize.config import OUTPUT_SHARE
from passportize.errors import InvalidArgument
from passportize.release.claim import claim_of
from tests.support.small_protected import accuracy, images, protected

PASSPORT = pp.Passport.generate(owner="Acme", date="2026-11-28", secret=bytes(range(3, 35)))


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


def marked(output_share: float) -> tuple[nn.Module, pp.Claim]:
    config = pp.PassportConfig.trained(bits=150)
    model = pp.passportize(protected("signature").copy(), PASSPORT, config=config).eval()
    calibration, _ = images("train")
    pp.embed_signature(model, calibration=calibration[:256].split(64), output_share=output_share)
    claim = claim_of(model)
    return pp.unpassportize(model), claim


def projected(output_share: float, **attack: Any) -> tuple[pp.Verdict, float]:
    """The verdict on what a thief's own inputs leave of a mark, and the points that they cost."""
    model, claim = marked(output_share)
    test = images("test")[0]
    with torch.no_grad():
        before = accuracy(model(test))
        project_weights(model, images("train")[0][256:512].split(64), **attack)
        lost = before - accuracy(model(test))
    return pp.verify(model, PASSPORT, claim), lost


@pytest.mark.parametrize("energy", [0.999, 0.99, 0.97, 0.95])
def test_a_mark_outlives_the_projections_that_leave_the_network_whole(energy: float) -> None:
    verdict, lost = projected(OUTPUT_SHARE, energy=energy)
    assert abs(lost) < 2 and verdict.accepted


def test_it_outlives_a_fit_with_a_penalty() -> None:
    verdict, lost = projected(OUTPUT_SHARE, energy=None, shrink=0.01)
    assert abs(lost) < 2 and verdict.strength > 120


def test_a_mark_that_spends_nothing_is_projected_away() -> None:
    """At the least change of the output it lies where inputs are not, and goes for nothing."""
    verdict, lost = projected(1e-9, energy=0.97)
    assert abs(lost) < 2 and not verdict.accepted and verdict.strength < 20


def test_noise_where_marks_lie_costs_more_than_the_mark() -> None:
    """Ten times of what the mark took of the outputs leaves it; a thief has to spend far more."""
    inputs, test = images("train")[0][256:512].split(64), images("test")[0]
    strengths = []
    for share in (10 * OUTPUT_SHARE, 1.0):
        model, claim = marked(OUTPUT_SHARE)
        assert drown_weights(model, inputs, share, generator=torch.Generator().manual_seed(0))
        strengths.append(pp.verify(model, PASSPORT, claim).strength)
    with torch.no_grad():
        assert accuracy(model(test)) < 95
    assert strengths[0] > 64 > strengths[1]


def test_noise_makes_what_it_should_of_the_outputs() -> None:
    torch.manual_seed(0)
    x = torch.randn(800, 70) @ torch.diag(torch.logspace(0, -3, 70))
    model = nn.Sequential(nn.Linear(70, 100, bias=False))
    before = model(x).detach()
    assert drown_weights(model, [x], 0.04, generator=torch.Generator().manual_seed(1))
    moved = (model(x).detach() - before).square().mean() / before.square().mean()
    assert float(moved) == pytest.approx(0.04, rel=0.02)
    for share in (0.0, -1.0, float("nan")):
        with pytest.raises(InvalidArgument, match="share"):
            drown_weights(model, [x], share)


def test_noise_where_no_input_is_leaves_a_mark_in_a_network_that_uses_all_it_has() -> None:
    model, claim = marked(OUTPUT_SHARE)
    inputs = images("train")[0][256:512].split(64)
    assert drown_weights(model, inputs, 3e-4, 1e-4, torch.Generator().manual_seed(0))
    assert pp.verify(model, PASSPORT, claim).strength > 120


def test_noise_where_no_input_is_takes_any_mark_from_a_layer_that_uses_little() -> None:
    """It costs the thief nothing, also where the mark was not put in by inputs: a known limit."""
    torch.manual_seed(0)
    x = torch.randn(400, 8) @ torch.randn(8, 96) + 0.01 * torch.randn(400, 96)
    model = nn.Sequential(nn.Linear(96, 160), nn.BatchNorm1d(160), nn.ReLU(), nn.Linear(160, 4))
    config = pp.PassportConfig.signature()
    model = pp.passportize(model, PASSPORT, config=config, example_inputs=x[:4])
    pp.embed_signature(model)
    claim = claim_of(model)
    model = pp.unpassportize(model).eval()
    before = model(x).detach()
    assert pp.verify(model, PASSPORT, claim).strength > 120
    assert drown_weights(model, [x], 1e-3, 1e-5, torch.Generator().manual_seed(1))
    assert (model(x).detach() - before).square().mean() < 5e-3 * before.var()
    assert pp.verify(model, PASSPORT, claim).strength < 20


def test_rows_that_lie_where_inputs_are_small_are_seen() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(500, 80) @ torch.diag(torch.logspace(0, -3, 80))
    model = nn.Sequential(nn.Linear(80, 60, bias=False))
    before = unused_shares(model, [inputs])["0.weight"]
    with torch.no_grad():
        model[0].weight[:20, 40:] *= 4
    after = unused_shares(model, [inputs])["0.weight"]
    assert float(after[:20].min()) > float(after[20:].max())
    assert float(before[:20].mean() - before[20:].mean()) < 0.2


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


@pytest.mark.parametrize("attack", [project_weights, drown_weights, unused_shares])
def test_inputs_that_are_not_finite_are_refused(attack: Callable[..., Any]) -> None:
    model = nn.Sequential(nn.Linear(64, 8))
    before = model[0].weight.detach().clone()
    with pytest.raises(InvalidArgument, match=r"0\.weight are not finite"):
        attack(model, [torch.full((2, 64), float("inf"))])
    assert torch.equal(model[0].weight, before)
