"""Whether a table of likenesses tells anything, so that an assignment is worth its time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from passportize.alignment.held_out import HeldOut, correlations, correlations_by_row
from passportize.alignment.matching import Matching, _ratio, _tells
from passportize.alignment.tied_channels import find_tied_channels
from passportize.alignment.undoing import Undoing


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


@pytest.mark.parametrize("alike", [False, True])
def test_nothing_is_left_out_where_the_suspect_is_known_to_be_no_stranger(alike: bool) -> None:
    """Few entries under much noise say little of each channel, and something of all."""
    model = nn.Sequential(nn.Linear(96, 600), nn.ReLU(), nn.Linear(600, 4))
    drawn = torch.Generator().manual_seed(1)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    tensors = {name: torch.randn(shape, generator=drawn) for name, shape in shapes.items()}
    noise = {name: torch.randn(shape, generator=drawn) for name, shape in shapes.items()}
    suspect = {name: value + 6 * noise[name] for name, value in tensors.items()}
    order = torch.randperm(600, generator=drawn)
    suspect |= {name: suspect[name][order] for name in ("0.weight", "0.bias")}
    suspect["2.weight"] = suspect["2.weight"][:, order]
    tied = find_tied_channels(model, torch.randn(2, 96))
    held_out = HeldOut(tied, shapes, ())
    matching = Matching(Undoing(tensors, suspect, tied, held_out), tied, held_out)
    matching.alike = alike
    found = matching.match(0, late=False)
    assert found is not None
    assert torch.equal(found, torch.arange(600)) != alike
    right = float((order[found] == torch.arange(600)).float().mean())
    assert (right > 4 / 600) == alike, right
