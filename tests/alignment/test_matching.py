"""Whether a table of likenesses tells anything, so that an assignment is worth its time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from passportize.alignment.held_out import correlations, correlations_by_row
from passportize.alignment.matching import _ratio, _tells


def rows(seed: int, channels: int = 600, entries: int = 64) -> Tensor:
    return torch.randn(channels, entries, generator=torch.Generator().manual_seed(seed))


def likeness(own: Tensor, other: Tensor) -> Tensor:
    return _ratio(*correlations(own, other, torch.ones_like(own, dtype=torch.bool)))


@pytest.mark.parametrize("seed", range(5))
def test_a_stranger_of_many_channels_tells_nothing(seed: int) -> None:
    assert not _tells(likeness(rows(seed), rows(100 + seed)))


@pytest.mark.parametrize("noise", [0.3, 1.0, 2.0])
def test_a_copy_under_noise_tells(noise: float) -> None:
    assert _tells(likeness(rows(0), rows(0) + noise * rows(1)))


def test_a_copy_of_a_tenth_of_the_channels_tells() -> None:
    other = rows(1)
    other[:60] = rows(0)[:60]
    assert _tells(likeness(rows(0), other))


def test_few_channels_are_always_assigned() -> None:
    assert _tells(likeness(rows(0, 100), rows(1, 100)))


def test_correlations_by_row_are_the_diagonal_of_those_of_all() -> None:
    own, other = rows(0, 20), rows(1, 20)
    chosen = rows(2, 20) > 0
    found, entries = correlations_by_row(own, other, chosen)
    for at in range(20):
        pair = own[at, chosen[at]], other[at, chosen[at]]
        torch.testing.assert_close(found[at], torch.cosine_similarity(*pair, dim=0))
        assert int(entries[at]) == int(chosen[at].sum())
