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
from passportize.utils.resized import put_tensor
from passportize.verification.laid_beside import LaidBeside, lay_beside
from tests.support.small_protected import PASSPORT
from tests.support.widths import (
    EXAMPLE,
    FAMILIES,
    Residual,
    ShortRows,
    as_trained,
    judged,
    noised,
    outputs,
    released,
    rounded,
    seeded,
    stolen,
)
from tests.verification.test_identification import released as licensed

pytestmark = pytest.mark.filterwarnings(
    "ignore::passportize.training.embedding.TrainedWeightsWarning"
)


def with_dummies(model: nn.Module, *variants: str, share: float = 0.2) -> int:
    return sum(add_dummy_neurons(model, kind, share, seeded(1), EXAMPLE) for kind in variants)


@pytest.mark.parametrize(
    ("family", "share"), [("residual", 0.05), ("residual", 0.2), ("residual", 0.5), ("dense", 0.2)]
)
@pytest.mark.parametrize("variant", VARIANTS)
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


@pytest.mark.parametrize(
    ("family", "order"),
    [
        ("residual", "dummies first"),
        ("residual", "dummies last"),
        ("dense", "dummies first"),
        ("inverted", "dummies first"),
        ("inverted", "dummies last"),
        ("transformer", "dummies first"),
    ],
)
def test_all_kinds_at_once_with_every_other_disguise(family: str, order: str) -> None:
    suspect = stolen(family)
    if order == "dummies last":
        disguise(suspect, seeded(3), example_inputs=EXAMPLE)
    assert with_dummies(suspect, *VARIANTS)
    if order == "dummies first":
        disguise(suspect, seeded(3), example_inputs=EXAMPLE)
    before = outputs(stolen(family))
    assert float((outputs(suspect) - before).abs().max()) < 2e-4 * float(before.abs().max())
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


# --- channels that a thief adds by hand, and what is refused -------------------------------------


@torch.no_grad()
def add_by_hand(model: nn.Module, rows: torch.Tensor, read: torch.Tensor) -> None:
    """More channels between the first two convolutions of a block of :class:`Residual`.

    Args:
        model: The model, changed in place.
        rows: What writes them, ``[n, in, 3, 3]``.
        read: What reads them, ``[out, n, 3, 3]``.
    """
    inner, norm, reader = model.first[0], model.first[1], model.second[0]
    put_tensor(model, "first.0.weight", torch.cat([inner.weight, rows]))
    put_tensor(model, "second.0.weight", torch.cat([reader.weight, read], 1))
    for key in ("weight", "bias", "running_mean", "running_var"):
        values = getattr(norm, key)
        put_tensor(model, f"first.1.{key}", torch.cat([values, values[: len(rows)]]))


def assert_bits_are_back(suspect: nn.Module, taken: int) -> None:
    """Bits are read from all layers: by those that were left alone a copy is known at once."""
    beside = lay_beside(suspect, released("residual")[0].state_dict(), EXAMPLE)
    assert isinstance(beside, LaidBeside) and beside.narrowed is not None
    found = beside.narrowed
    assert found.merged + found.dropped == taken and found.chosen == 0
    reading = kept_evidence("residual", suspect).reading
    assert reading.matched == kept_evidence("residual", stolen("residual")).reading.matched


def test_clones_of_real_channels_that_cancel_each_other() -> None:
    suspect = stolen("residual")
    real, before = suspect.first[0].weight.detach()[:6], outputs(suspect)
    half = torch.randn(24, 6, 3, 3, generator=seeded())
    for sign in (3.0, -3.0):
        add_by_hand(suspect, real, sign * half)
    assert torch.allclose(outputs(suspect), before, atol=1e-3)
    assert_bits_are_back(suspect, 12)


def test_channels_of_one_constant() -> None:
    suspect = stolen("residual")
    add_by_hand(suspect, torch.zeros(5, 24, 3, 3), torch.randn(24, 5, 3, 3, generator=seeded()))
    assert_bits_are_back(suspect, 5)


def test_dummies_that_only_dummies_read() -> None:
    suspect = stolen("residual")
    for _ in range(2):
        with_dummies(suspect, "clique", "zero", share=0.25)
    verdict = judged("residual", suspect)
    assert verdict.links is not None and verdict.links.accepted
    assert "had to say" not in verdict.links.narrowed


@pytest.mark.parametrize(
    ("family", "make", "reason"),
    [
        ("short rows", lambda: ShortRows(9 * 256), "more than 8 times as wide"),
        ("transformer", lambda: nn.Sequential(Residual()), "released architecture"),
    ],
)
def test_what_is_not_reduced_is_said(
    family: str, make: Callable[[], nn.Module], reason: str
) -> None:
    verdict = judged(family, as_trained(make, 3))
    assert verdict.accepted is not True and reason in verdict.reason
    assert verdict.links is not None and verdict.links.accepted is None


def test_a_licensee_is_told_by_a_widened_copy() -> None:
    original, claim = licensed()
    passport = pp.Passport.generate("Acme", date="2026-01-31", secret=bytes(range(32)))
    suspect = copy.deepcopy(original)
    inputs = torch.rand(12, 8, 6, 6, generator=seeded(1))
    pp.mark_copy(suspect, passport.licensee("licensee 3"), claim, calibration=[inputs])
    for kind in VARIANTS:
        assert add_dummy_neurons(suspect, kind, 0.2, seeded(1), inputs)
    disguise(suspect, seeded(2), example_inputs=inputs)
    names = [f"licensee {number}" for number in range(6)]
    options = {"released": original, "example_inputs": inputs}
    assert pp.identify(suspect, passport, names, claim, **options).named == ("licensee 3",)
    assert pp.identify(suspect, passport, names, claim).named == ()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
def test_wild_numbers_in_a_widened_suspect_do_no_harm(value: float) -> None:
    suspect = stolen("inverted")
    with_dummies(suspect, "zero")
    with torch.no_grad():
        suspect.stem[0].weight[::2] = value
        suspect.stem[1].running_var[1] = value
    verdict = judged("inverted", suspect)
    assert verdict.links is not None and verdict.links.narrowed


def test_a_widened_suspect_with_another_classifier() -> None:
    suspect = stolen("residual")
    with_dummies(suspect, *VARIANTS)
    disguise(suspect, seeded(3), example_inputs=EXAMPLE)
    suspect.head = nn.Linear(suspect.head.in_features, 12)
    verdict = judged("residual", suspect)
    assert verdict.accepted is True and verdict.links is not None
    assert "head.weight" in verdict.links.narrowed and "channels more" in verdict.links.narrowed
