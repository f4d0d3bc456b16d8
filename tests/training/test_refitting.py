"""Weights fitted anew to what they compute: ridge regression, without what inputs do not use."""

from __future__ import annotations

import copy
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from passportize.errors import InvalidArgument
from passportize.thresholds import Penalty
from passportize.training.refitting import refit_weights, rows_with_moments


def inputs(samples: int = 300, entries: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(entries)
    sizes = torch.logspace(0, -3, entries)
    return torch.randn(samples, entries, generator=generator) * sizes


@pytest.mark.parametrize("share", [1e-4, 3e-3, 0.2])
def test_it_is_ridge_regression_and_moves_every_output_by_the_share(share: float) -> None:
    x = inputs().double()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 30, bias=False)).double()
    with torch.no_grad():
        model[0].weight[3] *= 1e6
    before = model[0].weight.detach().clone()
    y = x @ before.T
    assert refit_weights(model, [x[:100], x[100:]], share) == ["0.weight"]
    after = model[0].weight.detach()
    moved = (x @ after.T - y).square().sum(0) / y.square().sum(0)
    torch.testing.assert_close(moved, torch.full_like(moved, share), rtol=1e-4, atol=0)
    # The penalty of a row is told by the normal equations, and the fit with it is the same.
    for row in range(30):
        left = x.T @ (y - x @ after.T)[:, row]
        penalty = float(left @ after[row] / after[row].square().sum())
        fitted = torch.linalg.solve(x.T @ x + penalty * torch.eye(40), x.T @ y[:, row])
        torch.testing.assert_close(after[row], fitted, rtol=1e-4, atol=1e-6 * float(fitted.norm()))


def test_rows_of_a_weight_have_the_upper_quartile_of_the_penalties() -> None:
    x = inputs().double()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 30, bias=False)).double()
    y = x @ model[0].weight.detach().T

    def penalties(penalty: Penalty) -> torch.Tensor:
        fitted = copy.deepcopy(model)
        refit_weights(fitted, [x], penalty=penalty)
        after = fitted[0].weight.detach()
        left = x.T @ (y - x @ after.T)
        return (left.T * after).sum(1) / after.square().sum(1)

    alone, together = penalties("rows"), penalties("weights")
    assert float(alone.max() / alone.min()) > 1.5
    torch.testing.assert_close(together, alone.quantile(0.75).expand(30), rtol=1e-3, atol=0)
    # The sizes of inputs by the Gram matrix, without directions.
    mean = x.square().sum() / 40
    torch.testing.assert_close(penalties("inputs"), (10 * mean).expand(30), rtol=1e-6, atol=0)


def test_noise_where_no_input_is_goes_and_the_outputs_stay() -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 12) @ torch.randn(12, 64)
    model = nn.Sequential(nn.Linear(64, 50), nn.ReLU(), nn.Linear(50, 3))
    before = copy.deepcopy(model)
    with torch.no_grad():
        unused = torch.linalg.svd(x)[2][12:]
        model[0].weight += torch.randn(50, 52) @ unused
    noisy = copy.deepcopy(model)
    for each in (before, model):
        refit_weights(each, [x], 1e-3)
    left, right = (each[0].weight.detach() for each in (model, before))
    apart = (left - right).norm(dim=1) / right.norm(dim=1)
    assert float(apart.max()) < 0.05
    assert (noisy[0].weight - before[0].weight).norm() > 10 * before[0].weight.norm()


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(6, 8, 3, padding=1, stride=2), (5, 6, 9, 9)),
        (nn.Conv2d(8, 12, 3, groups=4), (6, 8, 7, 7)),
        (nn.Conv1d(5, 7, 3, dilation=2), (8, 5, 20)),
        (nn.Linear(9, 4), (3, 11, 9)),
    ],
    ids=["strided", "grouped", "dilated", "linear"],
)
def test_every_kind_of_layer_keeps_what_it_computes(layer: nn.Module, shape: tuple[int]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(copy.deepcopy(layer))
    x = torch.randn(shape)
    with torch.no_grad():
        bias = model(torch.zeros(shape))
        before = model(x) - bias
        assert refit_weights(model, [x], 1e-3) == ["0.weight"]
        moved = (model(x) - bias - before).square().sum() / before.square().sum()
    assert 0 < float(moved) <= 1.001e-3


def test_attention_of_torch_is_seen() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.attention(x, x, x)[0]

    model, x = Attends(), torch.randn(4, 5, 16)
    done = refit_weights(model, [x])
    assert set(done) == {"attention.in_proj_weight", "attention.out_proj.weight"}


def test_all_are_fitted_to_what_they_had_before_any_was() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 5))
    other, x = copy.deepcopy(model), torch.randn(50, 20)
    refit_weights(model, [x], 0.1)
    hidden = torch.relu(other[0](x)).detach()
    alone = nn.Sequential(copy.deepcopy(other[2]))
    refit_weights(alone, [hidden], 0.1)
    torch.testing.assert_close(model[2].weight, alone[0].weight, atol=1e-5, rtol=1e-4)


def test_little_memory_means_more_passes_and_the_same_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 25), nn.Linear(25, 5))
    x, other = torch.randn(50, 20), copy.deepcopy(model)
    steps: list[tuple[int, int]] = []
    refit_weights(model, [x[:25], x[25:]], progress=lambda done, of: steps.append((done, of)))
    assert steps[-1] == (2, 2)
    monkeypatch.setattr("passportize.training.input_moments._MEMORY", 1)
    steps.clear()
    refit_weights(other, (batch for batch in (x[:25], x[25:])), progress=lambda *s: steps.append(s))
    assert steps[-1] == (6, 6)
    for left, right in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("penalty", get_args(Penalty))
def test_rows_that_compute_nothing_stay_zero(penalty: Penalty) -> None:
    x = torch.cat([torch.randn(50, 6), torch.zeros(50, 2)], dim=1)
    model = nn.Sequential(nn.Linear(8, 5), nn.Linear(5, 4))
    with torch.no_grad():
        model[0].weight[2] = 0
        model[1].weight.zero_()
    refit_weights(model, [x], penalty=penalty)
    weights = [model[0].weight.detach(), model[1].weight.detach()]
    assert all(bool(torch.isfinite(weight).all()) for weight in weights)
    assert not weights[0][2].any() and not weights[1].any() and bool(weights[0][0].any())
    assert float(weights[0][:, 6:].abs().max()) < 1e-6


@given(st.integers(1, 6), st.integers(1, 4), st.floats(1e-6, 0.9))
def test_a_layer_whose_inputs_are_zero_stays(entries: int, rows: int, share: float) -> None:
    model = nn.Sequential(nn.Linear(entries, rows))
    before = model[0].weight.detach().clone()
    refit_weights(model, [torch.zeros(3, entries)], share)
    assert torch.equal(model[0].weight, before)


def test_what_makes_no_sense() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(InvalidArgument, match="share"):
            refit_weights(model, [torch.zeros(1, 3)], share)
    with pytest.raises(InvalidArgument, match="no batch"):
        refit_weights(model, [])
    broken = torch.full((2, 3), float("nan"))
    assert refit_weights(model, [broken]) == []
    with pytest.raises(InvalidArgument, match="not finite"):
        list(rows_with_moments(model, [broken], 1))
    with pytest.raises(InvalidArgument, match=r"\[images\] for one batch"):
        list(rows_with_moments(model, torch.zeros(2, 3), 1))
