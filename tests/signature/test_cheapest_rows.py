"""The cheapest change that puts bits into rows, against an independent optimiser."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from passportize.passport.derivation import LabelledStream
from passportize.signature.cheapest_rows import Depth, cheapest_rows, rows_at_share
from passportize.signature.metric import Metric
from passportize.signature.response import normalised_responses, reach_of
from passportize.signature.turning import SPARE, turned_rows
from passportize.signature.vectors import SignVectors, draw_sign_vectors


def drawn(rows: int, entries: int, seed: int) -> tuple[Tensor, SignVectors, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    vectors = draw_sign_vectors(LabelledStream(seed.to_bytes(32, "big")), "bn", 0, rows, entries)
    bits = torch.randint(0, 2, (rows,), generator=generator).double() * 2 - 1
    return torch.randn(rows, entries, generator=generator, dtype=torch.float64), vectors, bits


def uneven(entries: int, seed: int, decay: float = 3.0) -> Tensor:
    """A second moment whose eigenvalues fall over many orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(entries, entries, generator=generator, dtype=torch.float64)
    basis, _ = torch.linalg.qr(raw)
    values = torch.logspace(0, -decay, entries, dtype=torch.float64)
    return basis @ torch.diag(values) @ basis.T


@pytest.mark.parametrize("level", [0.1, 1.0, 100.0])
def test_a_moment_that_rounding_has_spoilt(level: float) -> None:
    """Few inputs leave directions of which float32 sums make less than nothing."""
    torch.manual_seed(0)
    inputs = torch.randn(20, 100) @ torch.diag(torch.logspace(2, -2, 100))
    moment = (inputs.T @ inputs / 20).double()
    moment = (moment + moment.T) / 2
    assert float(torch.linalg.eigvalsh(moment)[0]) < -1e-9 * float(moment.diagonal().mean())
    rows, vectors, bits = drawn(5, 100, 3)
    added = cheapest_rows(rows, vectors, bits, 1.0, Metric(moment), Depth(level))
    assert added is not None
    got = normalised_responses([rows + added], [vectors])
    reach = 0.99 * reach_of(1.0, vectors.entries)
    assert bool((got.gauge.abs() >= reach).all()) and bool((bits * got.gamma >= reach).all())


def price(metric: Metric, level: float) -> Tensor:
    """``P^-1`` by its eigenvalues."""
    values, basis = torch.linalg.eigh(metric.moment / metric.moment.diagonal().mean())
    inverse = 4 * level * values / (values + level).square() + 1e-3
    return (basis / inverse) @ basis.T


@settings(max_examples=40, deadline=None)
@given(
    entries=st.integers(8, 300),
    margin=st.floats(0.05, 3.0),
    decay=st.floats(0, 12),
    level=st.sampled_from([0.1, 1.0, 100.0]),
    seed=st.integers(0, 2**31),
    centred=st.booleans(),
)
def test_every_row_keeps_the_margin(
    entries: int, margin: float, decay: float, level: float, seed: int, centred: bool
) -> None:
    # A short vector may be nearly constant, and nothing of that is left in a row less its mean.
    entries = max(entries, 40) if centred else entries
    rows, vectors, bits = drawn(5, entries, seed)
    if centred:
        rows -= rows.mean(1, keepdim=True)
    metric = Metric(uneven(entries, seed, decay))
    added = cheapest_rows(rows, vectors, bits, margin, metric, Depth(level), centred)
    if added is None:
        added = torch.zeros_like(rows)
    if centred:
        added = added - added.mean(1, keepdim=True)
    got = normalised_responses([rows + added], [vectors])
    reach = 0.99 * reach_of(margin, vectors.entries)
    assert bool((got.gauge.abs() >= reach).all()) and bool((bits * got.gamma >= reach).all())


@pytest.mark.parametrize("seed", range(4))
def test_no_change_costs_less(seed: int) -> None:
    entries, margin, level = 24, 0.7, 0.5
    rows, vectors, bits = drawn(3, entries, seed)
    metric = Metric(uneven(entries, seed, 1.0))
    added = cheapest_rows(rows, vectors, bits, margin, metric, Depth(level))
    assert added is not None
    full = price(metric, level).numpy()
    found = ((added.numpy() @ full) * added.numpy()).sum(1)
    values, basis = torch.linalg.eigh(metric.moment / metric.moment.diagonal().mean())
    used = ((basis * (values / (values + level)).square()) @ basis.T).numpy()
    s, t, _ = vectors.signs(torch.float64).numpy()
    for row in range(3):
        w, b = rows[row].numpy(), float(bits[row])
        # The length that the margin is a multiple of is that of the row as it became.
        least = SPARE * margin * float((rows[row] + added[row]).norm())
        left = SPARE * margin * float(np.linalg.norm(used @ w))
        best = math.inf
        for sign in (1.0, -1.0):
            limits = [
                {"type": "ineq", "fun": lambda d, w=w, v=k * v, m=m: (w + d) @ v - m}
                for v, k, m in (
                    (s[row], sign, least),
                    (t[row], sign * b, least),
                    (used @ s[row], sign, left),
                    (used @ t[row], sign * b, left),
                )
            ]
            for start in range(2):
                first = np.random.default_rng(start).normal(size=entries) * 0.1
                result = minimize(
                    lambda d: d @ full @ d,
                    first,
                    jac=lambda d: 2 * full @ d,
                    constraints=limits,
                    method="SLSQP",
                    options={"maxiter": 400, "ftol": 1e-12},
                )
                if result.success:
                    best = min(best, float(result.fun))
        assert found[row] <= 1.02 * best + 1e-9


def test_an_even_price_is_the_turn_with_the_least_weights() -> None:
    rows, vectors, bits = drawn(200, 64, 3)
    added = cheapest_rows(rows, vectors, bits, 0.5, Metric(torch.eye(64).double()), Depth(1.0))
    turned = turned_rows(rows, vectors, bits, 0.5)
    assert added is not None and turned is not None
    least, even = (turned - rows).norm(), added.norm()
    assert 0.98 < float(even / least) < 1.05


def test_an_uneven_price_is_paid_where_it_is_low() -> None:
    rows, vectors, bits = drawn(100, 128, 4)
    metric = Metric(uneven(128, 4, 4.0))
    added = cheapest_rows(rows, vectors, bits, 0.5, metric, Depth(0.1, used=False))
    turned = turned_rows(rows, vectors, bits, 0.5)
    assert added is not None and turned is not None
    assert metric.output(added) < 0.4 * metric.output(turned - rows)


def test_it_lies_where_inputs_have_the_size_of_the_level() -> None:
    rows, vectors, bits = drawn(100, 128, 8)
    metric = Metric(uneven(128, 8, 4.0))
    values, basis = torch.linalg.eigh(metric.moment / metric.moment.diagonal().mean())
    for level in (0.1, 1.0, 3.0):
        added = cheapest_rows(rows, vectors, bits, 0.3, metric, Depth(level, used=False))
        assert added is not None
        inside = (values > level / 10) & (values < level * 10)
        energy = (added @ basis).square().sum(0)
        assert float(energy[inside].sum() / energy.sum()) > 0.9
        assert float(energy[values < level / 30].sum() / energy.sum()) < 0.05


@pytest.mark.parametrize("first", [0.1, 0.3, 100.0])
@pytest.mark.parametrize("share", [1e-3, 1e-2, 1e-1])
def test_what_may_be_spent_is_spent(share: float, first: float) -> None:
    """Wherever the search begins: a layer at the lowest depth once held all later ones there."""
    rows, vectors, bits = drawn(60, 128, 9)
    metric = Metric(uneven(128, 9, 4.0))
    added, depth = rows_at_share(rows, vectors, bits, 0.3, metric, share, first=first)
    assert added is not None
    spent = metric.output(added) / metric.output(rows)
    again = cheapest_rows(rows, vectors, bits, 0.3, metric, depth)
    assert again is not None and torch.equal(added, again)
    # More where even the smallest depth needs more.
    least = cheapest_rows(rows, vectors, bits, 0.3, metric, Depth(0.1, used=False))
    assert least is not None
    if metric.output(least) > share * metric.output(rows):
        assert depth.level == pytest.approx(0.1) and not depth.used
    else:
        assert 0.3 * share < spent <= share


@pytest.mark.parametrize("energy", [0.999, 0.99, 0.97])
def test_deep_marks_outlive_a_projection_and_shallow_ones_do_not(energy: float) -> None:
    """What is left on the directions that hold most of the inputs' energy."""
    rows, vectors, bits = drawn(400, 256, 10)
    metric = Metric(uneven(256, 10, 6.0))
    values, basis = torch.linalg.eigh(metric.moment)
    kept = basis[:, values.cumsum(0) > (1 - energy) * values.sum()]
    right = []
    for depth in (Depth(0.1, used=False), Depth(0.4)):
        added = cheapest_rows(rows, vectors, bits, 0.5, metric, depth)
        assert added is not None
        left = (rows + added) @ kept @ kept.T
        got = normalised_responses([left], [vectors])
        right.append(float((bits * got.gamma > 0).double().mean()))
    assert right[0] < 0.8 and right[1] > 0.9


def test_changes_may_lie_outside_the_window() -> None:
    rows, vectors, bits = drawn(6, 600, 5)
    assert vectors.entries == 256
    moment = uneven(600, 5)
    added = cheapest_rows(rows, vectors, bits, 1.0, Metric(moment), Depth(0.1))
    assert added is not None
    outside = torch.ones(600, dtype=torch.bool)
    outside[vectors.window] = False
    assert bool((added[:, outside] != 0).any())


def test_rows_of_zeros_and_rows_that_have_it_stay() -> None:
    rows, vectors, bits = drawn(8, 40, 6)
    rows[2] = 0
    metric = Metric(uneven(40, 6))
    added = cheapest_rows(rows, vectors, bits, 0.5, metric, Depth(0.3))
    assert added is not None and bool((added[2] == 0).all())
    whole = Depth(0.3, used=False)
    assert cheapest_rows(rows + added, vectors, bits, 0.5, metric, whole) is None


def test_inputs_that_are_all_zero_price_every_change_alike() -> None:
    rows, vectors, bits = drawn(8, 40, 7)
    added, _ = rows_at_share(rows, vectors, bits, 0.5, Metric(torch.zeros(40, 40).double()), 0.01)
    assert added is not None and bool(torch.isfinite(added).all())


def test_a_level_that_drowns_in_rounding_is_raised() -> None:
    moment = torch.diag(torch.tensor([4.0, 1.0, -1e-9, 1e-9], dtype=torch.float64))
    directed, used = Metric(moment).parts(torch.eye(4).double(), 1e-12)
    assert bool(torch.isfinite(directed).all())
    assert float(used[0, 0]) == pytest.approx(1, abs=1e-6)
