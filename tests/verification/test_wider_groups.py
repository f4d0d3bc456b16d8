"""Channels added to every group of a grouped convolution, before and behind it, come out again."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from passportize.attacks.disguise import disguise
from passportize.utils.resized import put_tensor, tensor_of
from tests.support.exchanged import Grouped
from tests.support.widths import EXAMPLE, as_trained, judged, noised, seeded, stolen

pytestmark = pytest.mark.filterwarnings(
    "ignore::passportize.training.embedding.TrainedWeightsWarning"
)

FAMILY, GROUPS, MORE = "grouped convolution", 4, 4


@torch.no_grad()
def grown(model: nn.Module, name: str, dim: int, new: Callable[[Tensor], Tensor]) -> None:
    """New channels behind those of every group, along one dimension of a tensor."""
    tensor = tensor_of(model, name).movedim(dim, 0)
    parts = [torch.cat([part, new(part)]) for part in tensor.chunk(GROUPS)]
    put_tensor(model, name, torch.cat(parts).movedim(0, dim).contiguous())


def drawn(part: Tensor) -> Tensor:
    return torch.randn(MORE, *part.shape[1:], generator=seeded(9)) * part.std()


def nothing(part: Tensor) -> Tensor:
    return part.new_zeros(MORE, *part.shape[1:])


def again(part: Tensor) -> Tensor:
    return part[:MORE].clone()


@torch.no_grad()
def wider(model: nn.Module, side: str, kind: str) -> nn.Module:
    """A copy with four channels more in every group, which nothing reads or which are split."""
    suspect = copy.deepcopy(model)
    split = kind == "split"
    layer, norm = ("inward", "inward_norm") if side == "before" else ("middle", "middle_norm")
    grown(suspect, f"{layer}.weight", 0, again if split else drawn)
    for key in ("weight", "bias", "running_mean", "running_var"):
        grown(suspect, f"{norm}.{key}", 0, again)
    readers = [("outward.weight", 1), ("gate.weight", 1)] if side == "behind" else []
    if side == "before":
        # Within every group, so along the same columns of all.
        weight = suspect.middle.weight
        read = weight[:, :MORE] / 2 if split else weight.new_zeros(len(weight), MORE, 3, 3)
        if split:
            weight = torch.cat([weight[:, :MORE] / 2, weight[:, MORE:]], 1)
        suspect.middle.weight = nn.Parameter(torch.cat([weight, read], 1))
        suspect.middle.in_channels += GROUPS * MORE
    else:
        grown(suspect, "opened.weight", 0, again)
        grown(suspect, "opened.bias", 0, again)
        for name, dim in readers:
            if split:
                columns = tensor_of(suspect, name).movedim(dim, 0)
                for part in columns.chunk(GROUPS):
                    part[:MORE] /= 2
            grown(suspect, name, dim, again if split else nothing)
    return suspect.eval()


@pytest.mark.parametrize("kind", ["not read", "split"])
@pytest.mark.parametrize("sides", [("before",), ("behind",), ("before", "behind")])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_they_are_taken_out_below_the_full_disguise(
    sides: tuple[str, ...], kind: str, noise: float
) -> None:
    suspect = noised(stolen(FAMILY), noise)
    with torch.no_grad():
        before = suspect(EXAMPLE)
        for side in sides:
            suspect = wider(suspect, side, kind)
        disguise(suspect, seeded(3), example_inputs=EXAMPLE)
        largest = float(before.abs().max())
        assert float((suspect(EXAMPLE) - before).abs().max()) < 1e-4 * largest
    links = judged(FAMILY, suspect).links
    assert links is not None and links.accepted
    count = GROUPS * MORE * len(sides)
    assert f"{count} channels more" in links.narrowed
    assert links.aligned_matched >= (0.9 if noise else 0.98) * links.entries_matched


@pytest.mark.parametrize("kind", ["not read", "split"])
def test_a_stranger_with_wider_groups_stays_at_chance(kind: str) -> None:
    suspect = wider(wider(as_trained(Grouped, 7), "before", kind), "behind", kind)
    links = judged(FAMILY, suspect).links
    assert links is not None and links.similarity is not None and links.accepted is False
    assert abs(links.similarity.likeness) < 0.1 and links.aligned_strength < 12


@torch.no_grad()
def more_groups(model: nn.Module, kind: str) -> nn.Module:
    """A copy with groups in front of those of the convolution, read by nothing or split."""
    suspect = copy.deepcopy(model)
    count = 1 if kind == "not read" else GROUPS

    def in_front(name: str, dim: int, new: Callable[[Tensor], Tensor]) -> None:
        tensor = tensor_of(suspect, name).movedim(dim, 0)
        taken = tensor[: count * (len(tensor) // GROUPS)]
        whole = torch.cat([new(taken), tensor]).movedim(0, dim).contiguous()
        put_tensor(suspect, name, whole)

    def like(part: Tensor) -> Tensor:
        return torch.randn(part.shape, generator=seeded(9)) * part.std()

    suspect.middle.groups += count
    for name in ("inward", "middle"):
        in_front(f"{name}.weight", 0, like if kind == "not read" else torch.clone)
        for key in ("weight", "bias", "running_mean", "running_var"):
            in_front(f"{name}_norm.{key}", 0, torch.clone)
    for key in ("weight", "bias"):
        in_front(f"opened.{key}", 0, torch.clone)
    for name in ("gate.weight", "outward.weight"):
        if kind == "not read":
            in_front(name, 1, torch.zeros_like)
        else:
            in_front(name, 1, lambda part: 0.3 * part)
            tensor_of(suspect, name)[:, 96:] *= 0.7
    return suspect.eval()


@pytest.mark.parametrize("kind", ["not read", "split"])
@pytest.mark.parametrize("more", ["alone", "noise"])
def test_groups_that_were_added_are_left_out(kind: str, more: str) -> None:
    suspect = noised(stolen(FAMILY), 0.3 if more == "noise" else 0.0)
    with torch.no_grad():
        before = suspect(EXAMPLE)
        suspect = more_groups(suspect, kind)
        disguise(suspect, seeded(3), example_inputs=EXAMPLE)
        largest = float(before.abs().max())
        assert float((suspect(EXAMPLE) - before).abs().max()) < 1e-4 * largest
    links = judged(FAMILY, suspect).links
    assert links is not None and links.accepted and "groups of convolutions" in links.narrowed
    assert links.aligned_matched >= (0.9 if more == "noise" else 0.98) * links.entries_matched


@pytest.mark.parametrize("kind", ["not read", "split"])
def test_a_stranger_with_more_groups_stays_at_chance(kind: str) -> None:
    links = judged(FAMILY, more_groups(as_trained(Grouped, 7), kind)).links
    assert links is not None and links.similarity is not None and links.accepted is False
    assert abs(links.similarity.likeness) < 0.1 and links.aligned_strength < 12
