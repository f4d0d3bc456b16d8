"""The least change that puts bits into rows, against an independent optimiser."""

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
from passportize.signature.response import normalised_responses, raw_responses, reach_of
from passportize.signature.turning import moved_rows, turned_rows
from passportize.signature.vectors import RawVectors, SignVectors, draw_sign_vectors


def vectors(channels: int, entries: int, seed: int) -> SignVectors:
    keyed = LabelledStream(seed.to_bytes(32, "big"))
    return draw_sign_vectors(keyed, "bn", 0, channels, entries)


def signs(count: int, generator: torch.Generator) -> Tensor:
    return (torch.randint(0, 2, (count,), generator=generator) * 2 - 1).double()


def normal(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(
    entries=st.integers(8, 256),
    channels=st.integers(1, 9),
    margin=st.floats(0.01, 4.0),
    scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e6]),
    seed=st.integers(0, 2**31),
)
def test_turned_rows_keep_length_and_margin(
    entries: int, channels: int, margin: float, scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = normal(channels, entries, generator=generator) * scale
    side, bits = vectors(channels, entries, seed), signs(channels, generator)
    turned = turned_rows(rows, side, bits, margin)
    reach = reach_of(margin, entries)
    got = normalised_responses([rows if turned is None else turned], [side])
    assert bool((got.gauge.abs() >= 0.99 * reach).all())
    assert bool((bits * got.gamma >= 0.99 * reach).all())
    torch.testing.assert_close(got.length.abs(), rows.norm(dim=1))
    if turned is not None:
        assert turned_rows(turned, side, bits, margin) is None


def test_rows_that_keep_the_margin_and_rows_of_zeros_stay() -> None:
    generator = torch.Generator().manual_seed(1)
    rows, side, bits = normal(40, 30, generator=generator), vectors(40, 30, 1), signs(40, generator)
    rows[3] = 0
    before = normalised_responses([rows], [side])
    fine = (before.gauge.abs() >= 0.5) & (bits * before.gamma >= 0.5)
    turned = turned_rows(rows, side, bits, 0.5)
    assert turned is not None and 0 < int(fine.sum()) < 39
    assert torch.equal(turned[fine], rows[fine]) and torch.equal(turned[3], rows[3])
    changed = (turned != rows).any(1)
    changed[3] = True
    assert torch.equal(changed, ~fine)
    assert turned_rows(torch.zeros_like(rows), side, bits, 0.5) is None


@pytest.mark.parametrize("entries", [12, 13])
def test_it_is_the_least_change_by_a_general_optimiser(entries: int) -> None:
    """Independent calculation: scipy minimises the change under the same constraints."""
    generator = torch.Generator().manual_seed(4)
    rows, bits = normal(4, entries, generator=generator), signs(4, generator)
    side = vectors(4, entries, 4)
    s, t, _ = side.signs(torch.float64).numpy()
    turned = turned_rows(rows, side, bits, 2.0)
    assert turned is not None
    reach = 1.01 * reach_of(2.0, entries)
    for index, (row, ours, bit) in enumerate(
        zip(rows.numpy(), turned.numpy(), bits.numpy(), strict=True)
    ):
        length = float(np.linalg.norm(row))
        best = math.inf
        for sign in (1.0, -1.0):
            sides = [sign * s[index], sign * bit * t[index]]
            start = row + sum(max(0.0, reach * length - row @ v) / entries * v for v in sides)
            found = minimize(
                lambda x, row=row: float(np.square(x - row).sum()),
                start,
                jac=lambda x, row=row: 2 * (x - row),
                method="SLSQP",
                constraints=[
                    {"type": "eq", "fun": lambda x, n=length: float(x @ x) - n**2},
                    *(
                        {"type": "ineq", "fun": lambda x, v=v, n=length: float(x @ v) - reach * n}
                        for v in sides
                    ),
                ],
                options={"maxiter": 500, "ftol": 1e-12},
            )
            left = [
                abs(found.x @ found.x - length**2),
                *(reach * length - found.x @ v for v in sides),
            ]
            if max(left) < 1e-6:
                best = min(best, float(found.fun))
        assert float(np.square(ours - row).sum()) == pytest.approx(best, rel=1e-3)


def test_raw_rows_move_along_the_vector_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, bits = normal(6, 10, generator=generator), signs(6, generator)
    side = RawVectors(normal(2, 10, 2, generator=generator))
    moved = moved_rows(rows, side, bits, 0.1)
    assert moved is not None
    assert bool((bits * raw_responses([moved], [side]).gamma >= 0.1).all())
    each = side.values[..., 0].repeat_interleave(3, 0)
    added = moved - rows
    parallel = (added * each).sum(1) / each.norm(dim=1)
    assert torch.allclose(parallel.abs(), added.norm(dim=1))
    assert moved_rows(moved, side, bits, 0.1) is None


def test_raw_rows_move_no_further_than_the_margin_asks() -> None:
    """The nearest point of a half-space, calculated with numpy."""
    generator = torch.Generator().manual_seed(2)
    rows, bits = normal(50, 10, generator=generator), signs(50, generator)
    side = RawVectors(normal(10, 2, generator=generator))
    moved = moved_rows(rows, side, bits, 0.1)
    assert moved is not None
    vector = side.values[:, 0].numpy()
    answer = bits.numpy() * (rows.numpy() @ vector)
    short = np.where(answer < 0.0999, 0.101 - answer, 0)
    expected = rows.numpy() + (bits.numpy() * short / (vector @ vector))[:, None] * vector
    np.testing.assert_allclose(moved.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(("entries", "margin"), [(9, 2.0), (16, 2.0), (40, 1.0), (64, 2.0)])
def test_of_all_rows_that_meet_the_conditions_the_nearest_is_taken(
    entries: int, margin: float
) -> None:
    """For both signs of the gauge and each set of conditions that hold with equality."""
    generator = torch.Generator().manual_seed(entries)
    rows = torch.randn(200, entries, generator=generator, dtype=torch.float64)
    vectors = draw_sign_vectors(LabelledStream(bytes(32)), "norm", 0, 200, entries)
    bits = torch.randint(0, 2, (200,), generator=generator).double() * 2 - 1
    turned = turned_rows(rows, vectors, bits, margin)
    assert turned is not None
    s, t, _ = vectors.signs(torch.float64).numpy()
    spare = 1.01 * reach_of(margin, entries)
    for w, got, own, other, bit in zip(
        rows.numpy(), turned.numpy(), s, t, bits.tolist(), strict=True
    ):
        length = np.linalg.norm(w)
        best = -np.inf
        for sign in (1.0, -1.0):
            conditions = np.stack([sign * own, sign * bit * other])
            for active in ([0], [1], [0, 1]):
                a = conditions[active]
                fixed = a.T @ np.linalg.solve(a @ a.T, np.full(len(active), spare * length))
                free = w - a.T @ np.linalg.solve(a @ a.T, a @ w)
                left = length**2 - fixed @ fixed
                if left < 0:
                    continue
                found = fixed + free * np.sqrt(left) / np.linalg.norm(free)
                if (conditions @ found >= (1 - 1e-6) * spare * length).all():
                    best = max(best, float(found @ w))
        if not np.array_equal(got, w):  # rows that keep the margin stay
            np.testing.assert_allclose(got @ w, best, rtol=1e-6)
