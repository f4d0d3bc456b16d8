"""Channels that a thief added are taken out again, and a stranger with them stays a stranger."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import passportize as pp
from passportize.alignment.alignment import align
from passportize.attacks.disguise import disguise
from passportize.attacks.dummy_neurons import VARIANTS, add_dummy_neurons
from passportize.signature.evidence import Evidence, read_by_name
from passportize.signature.model_key import ModelKey
from passportize.verification.laid_beside import LaidBeside, lay_beside
from tests.support.small_protected import PASSPORT
from tests.support.widths import (
    EXAMPLE,
    FAMILIES,
    Residual,
    ShortRows,
    as_trained,
    noised,
    released,
    rounded,
    stolen,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore::passportize.training.embedding.TrainedWeightsWarning"
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def with_dummies(model: nn.Module, *variants: str, share: float = 0.2) -> int:
    return sum(add_dummy_neurons(model, kind, share, seeded(1), EXAMPLE) for kind in variants)


def judged(family: str, suspect: object, **options: object) -> pp.Verdict:
    original, claim = released(family)
    return pp.verify(suspect, PASSPORT, claim, released=original, example_inputs=EXAMPLE, **options)


def outputs(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(EXAMPLE)
    return found


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", ["residual", "dense"])
def test_each_kind_alone(family: str, variant: str, share: float) -> None:
    suspect = stolen(family)
    added = with_dummies(suspect, variant, share=share)
    before = outputs(stolen(family))
    assert float((outputs(suspect) - before).abs().max()) < 1e-4 * float(before.abs().max())
    # As it stands too little of it has the shapes of the claim.
    plain = pp.verify(suspect, PASSPORT, released(family)[1])
    verdict = judged(family, suspect)
    assert plain.accepted is not True and verdict.accepted is True
    links = verdict.links
    assert links is not None and links.similarity is not None
    assert links.aligned_matched == links.entries_matched
    assert links.similarity.likeness > 0.999
    assert f"{added} channels more than was released" in links.narrowed
    assert links.narrowed in str(verdict)


@pytest.mark.parametrize("family", ["residual", "dense", "inverted", "transformer"])
@pytest.mark.parametrize("order", ["dummies first", "dummies last"])
def test_all_kinds_at_once_with_every_other_disguise(family: str, order: str) -> None:
    suspect = stolen(family)
    if order == "dummies last":
        disguise(suspect, seeded(3), example_inputs=EXAMPLE)
    assert with_dummies(suspect, *VARIANTS)
    if order == "dummies first":
        disguise(suspect, seeded(3), example_inputs=EXAMPLE)
    before = outputs(stolen(family))
    assert float((outputs(suspect) - before).abs().max()) < 1e-3 * float(before.abs().max())
    links = judged(family, suspect).links
    assert links is not None and links.accepted
    assert links.aligned_matched >= 0.99 * links.entries_matched


def kept_evidence(family: str, suspect: nn.Module) -> Evidence:
    """Bits of a suspect on the entries that an alignment leaves alone, once it was aligned."""
    original, claim = released(family)
    beside = lay_beside(suspect, original.state_dict(), EXAMPLE)
    assert isinstance(beside, LaidBeside)
    aligned = align(beside.released, beside.suspect, beside.tied).tensors
    unread = {name: beside.held_out.fitted(name) for name in beside.released}
    return read_by_name(aligned, ModelKey(PASSPORT, claim.layout), claim.layout, unread)


@pytest.mark.parametrize("family", ["residual", "dense", "transformer"])
@pytest.mark.parametrize("change", [noised, rounded])
def test_with_noise_or_rounding_on_top(
    family: str, change: Callable[[nn.Module], nn.Module]
) -> None:
    suspect = stolen(family)
    with_dummies(suspect, *VARIANTS)
    before = kept_evidence(family, change(stolen(family)))
    after = kept_evidence(family, change(suspect))
    assert after.reading.total == before.reading.total
    # The noise is another one, so a few bits come and go.
    assert after.strength > 0.9 * before.strength - 10
    assert judged(family, suspect).accepted is True


@pytest.mark.parametrize("family", ["residual", "inverted"])
@pytest.mark.parametrize("size", [0.0, 0.3])
def test_a_stranger_with_dummies_stays_at_chance(family: str, size: float) -> None:
    suspect = as_trained(FAMILIES[family], 7)
    with_dummies(suspect, *VARIANTS)
    verdict = judged(family, noised(suspect, size))
    links = verdict.links
    assert verdict.accepted is False and links is not None and links.similarity is not None
    assert abs(links.similarity.likeness) < 0.1 and links.aligned_strength < 12


def test_a_strangers_bits_are_at_chance_whatever_channels_are_chosen() -> None:
    """A wide stranger has more channels to choose from, and on what was looked at it shows."""
    original, claim = released("short rows")
    key = ModelKey(PASSPORT, claim.layout)
    found = {"kept": 0, "looked at": 0}
    for seed in range(8):
        suspect = as_trained(lambda: ShortRows(512), 100 + seed)
        beside = lay_beside(suspect, original.state_dict(), EXAMPLE)
        assert isinstance(beside, LaidBeside) and beside.narrowed is not None
        assert beside.narrowed.chosen == 256
        aligned = align(beside.released, beside.suspect, beside.tied).tensors
        unread = {name: beside.held_out.fitted(name) for name in beside.released}
        looked_at = {name: ~entries for name, entries in unread.items()}
        for name, left_out in (("kept", unread), ("looked at", looked_at)):
            found[name] += read_by_name(aligned, key, claim.layout, left_out).reading.matched
    total = 8 * claim.layout.bits
    deviation = (total / 4) ** 0.5
    assert abs(found["kept"] - total / 2) < 3.5 * deviation
    assert found["looked at"] > total / 2 + 3 * deviation


@pytest.mark.parametrize("named", ["as released", "with a prefix", "otherwise"])
def test_a_file_beside_a_model_of_the_released_width(named: str, tmp_path: Path) -> None:
    suspect = stolen("residual")
    with_dummies(suspect, *VARIANTS)
    state = {}
    for number, (name, value) in enumerate(suspect.state_dict().items()):
        prefixed = name if named == "as released" else f"module.{name}"
        attribute = name.rpartition(".")[2]
        state[f"part{number}.{attribute}" if named == "otherwise" else prefixed] = value
    torch.save(state, tmp_path / "suspect.pt")
    model = as_trained(Residual, 9)
    before = copy.deepcopy(model.state_dict())
    verdict = judged("residual", tmp_path / "suspect.pt", model=model)
    assert verdict.accepted is True and verdict.links is not None and verdict.links.narrowed
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_suspect_is_left_as_it_was() -> None:
    suspect = stolen("residual")
    with_dummies(suspect, *VARIANTS)
    before = copy.deepcopy(suspect.state_dict())
    judged("residual", suspect)
    after = suspect.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert suspect.stem[0].out_channels == len(after["stem.0.weight"])
