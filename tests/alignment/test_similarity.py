"""The test of a link against a second calculation, row by row, in numpy."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from passportize.alignment.axes import Axis
from passportize.alignment.held_out import fitting_entries
from passportize.alignment.similarity import MATCHINGS, Similarity, measure_similarity
from passportize.alignment.tied_channels import TiedChannels, TiedGroup
from passportize.thresholds import LINK_LIKENESS, LINK_P_VALUE

NEVER = torch.zeros(1, dtype=torch.bool)


def rows_of(name: str, count: int, first: int, dim: int = 0) -> Axis:
    return Axis(name, dim, "rows", torch.arange(first, first + count), step=0)


def tied(axes: tuple[Axis, ...], *groups: TiedGroup) -> TiedChannels:
    zero = torch.zeros(1, dtype=torch.int64)
    return TiedChannels(axes, groups, zero, NEVER, NEVER, zero, zero, (), {})


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def table(own: Tensor, other: Tensor) -> np.ndarray:
    """Correlation over what was kept out, with the sign of the fitted part."""
    part = fitting_entries(own.shape).flatten(1).numpy()
    a, b = own.flatten(1).double().numpy(), other.flatten(1).double().numpy()
    found = np.zeros((len(a), len(b)))
    for i, j in itertools.product(range(len(a)), range(len(b))):
        fitted, held = part[i], ~part[i]
        sign = -1.0 if a[i, fitted] @ b[j, fitted] < 0 else 1.0
        norm = np.linalg.norm(a[i, held]) * np.linalg.norm(b[j, held])
        found[i, j] = sign * (a[i, held] @ b[j, held]) / norm
    return found


def test_every_number_against_loops() -> None:
    """Two groups: one of single rows, one of bundles of two rows that lie apart."""
    weights = {"a": random(5, 16, 4), "b": random(8, 20, 2, 2, seed=1), "c": random(5, 3, seed=2)}
    noise = {name: random(*own.shape, seed=9) for name, own in weights.items()}
    aligned = {name: 0.6 * own + 0.8 * noise[name] for name, own in weights.items()}
    aligned["a"][1] *= -1  # a sign that the fit did not find
    bundles = torch.tensor([[0, 4], [1, 5], [2, 6], [3, 7]])
    axes = (rows_of("a", 5, 1), rows_of("b", 8, 6), rows_of("c", 5, 1))
    single = torch.arange(5)[:, None]
    groups = (TiedGroup(5, ((0, single), (2, single))), TiedGroup(4, ((1, bundles),)))
    columns = (replace(axes[1], dim=1, role="columns", atoms=torch.arange(5)),)
    groups += (TiedGroup(5, ((3, single),)),)
    found = measure_similarity(weights, aligned, tied(axes + columns, *groups), matchings=4000)

    first = table(weights["a"], aligned["a"])
    whole = table(weights["b"], aligned["b"])
    second = sum(whole[part][:, part] for part in (slice(0, 4), slice(4, 8)))
    rows = 5 + 2 * 4
    assert (found.rows, found.matchings) == (rows, 4000)
    diagonal = (first.trace() + second.trace()) / rows
    assert diagonal > 0.3
    chance = (first.mean() * 5 + second.mean() * 4) / rows
    assert found.chance == pytest.approx(chance, abs=0.01)
    assert found.likeness == pytest.approx((diagonal - found.chance) / (1 - found.chance), abs=1e-5)
    orders = itertools.product(itertools.permutations(range(5)), itertools.permutations(range(4)))
    sums = [
        (first[range(5), list(one)].sum() + second[range(4), list(two)].sum()) / rows
        for one, two in orders
    ]
    exact = np.mean(np.array(sums) >= diagonal - 1e-6)
    assert found.p_value == pytest.approx((1 + 4000 * exact) / 4001, abs=0.004)


def test_a_copy_is_as_alike_as_can_be() -> None:
    own = random(16, 16, 4)
    channels = tied((rows_of("a", 16, 1),), TiedGroup(16, ((0, torch.arange(16)[:, None]),)))
    found = measure_similarity({"a": own}, {"a": own.clone()}, channels)
    assert found.likeness == pytest.approx(1.0, abs=1e-6)
    assert found.p_value == 1 / (MATCHINGS + 1) == 0.0005
    assert abs(found.chance) < 0.1 and found.rows == 16 and found.matchings == MATCHINGS
    assert found == measure_similarity({"a": own}, {"a": own.clone()}, channels)
    assert found.accepted is True


def test_rows_that_are_all_one_leave_nothing_to_be_found() -> None:
    own = random(1, 16, 4).expand(6, 16, 4)
    channels = tied((rows_of("a", 6, 1),), TiedGroup(6, ((0, torch.arange(6)[:, None]),)))
    found = measure_similarity({"a": own}, {"a": own}, channels, matchings=99)
    assert found.p_value == 1.0 and found.chance == pytest.approx(1.0, abs=1e-6)
    assert abs(found.likeness) < 1e3 and found.accepted is False


def test_channels_along_another_dimension() -> None:
    """As in a transposed convolution, whose outputs lie in dimension 1."""
    own, noise = random(16, 24, 2, 2), random(16, 24, 2, 2, seed=1)
    channels = tied((rows_of("a", 24, 1, dim=1),), TiedGroup(24, ((0, torch.arange(24)[:, None]),)))
    aligned = 0.6 * own + 0.8 * noise
    found = measure_similarity({"a": own}, {"a": aligned}, channels, matchings=19)
    part = fitting_entries(own.shape).movedim(1, 0).flatten(1)
    rows = [
        torch.cosine_similarity(a[~chosen], b[~chosen], 0)
        for a, b, chosen in zip(
            own.movedim(1, 0).flatten(1), aligned.movedim(1, 0).flatten(1), part, strict=True
        )
    ]
    mean = float(torch.stack(rows).mean())
    expected = (mean - found.chance) / (1 - found.chance)
    assert found.likeness == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("shape", [(6, 3), (6, 8, 3, 3)])
def test_where_nothing_was_kept_out_nothing_is_said(shape: tuple[int, ...]) -> None:
    channels = tied((rows_of("a", 6, 1),), TiedGroup(6, ((0, torch.arange(6)[:, None]),)))
    own = random(*shape)
    found = measure_similarity({"a": own}, {"a": own}, channels)
    assert found == Similarity(0.0, 0.0, 1.0, 0, 0)
    assert found.accepted is None


@pytest.mark.parametrize(
    ("likeness", "p_value", "accepted"),
    [
        (LINK_LIKENESS, LINK_P_VALUE, True),
        (LINK_LIKENESS - 1e-9, LINK_P_VALUE, False),
        (LINK_LIKENESS, LINK_P_VALUE * 1.001, False),
    ],
)
def test_both_thresholds_have_to_be_met(likeness: float, p_value: float, accepted: bool) -> None:
    assert Similarity(likeness, 0.0, p_value, 10, 1).accepted is accepted


def test_large_groups_are_permuted_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    from passportize.alignment import similarity

    own = random(7, 16, 4)
    channels = tied((rows_of("a", 7, 1),), TiedGroup(7, ((0, torch.arange(7)[:, None]),)))
    whole = measure_similarity({"a": own}, {"a": 0.1 * own + random(7, 16, 4, seed=4)}, channels)
    for at_once in (3, 7 * 5, 7 * 1000):
        monkeypatch.setattr(similarity, "_AT_ONCE", at_once)
        again = measure_similarity(
            {"a": own}, {"a": 0.1 * own + random(7, 16, 4, seed=4)}, channels
        )
        assert again == whole
