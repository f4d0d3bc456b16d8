"""Two parties, two models, two claims: every way in which it can end."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest
import torch
from torch import nn

import passportize as pp
from passportize.attacks.dummy_neurons import VARIANTS, add_dummy_neurons
from passportize.attacks.permutation import permute_channels
from passportize.errors import InvalidArgument, WrongPassport
from passportize.layers.model import switch_of
from passportize.release.claim import claim_of
from passportize.signature.layout import anchor_of
from passportize.signature.model_key import ModelKey
from passportize.signature.reading import rows_of
from passportize.signature.rows import added_to_rows
from passportize.verification.arbitration import Arbitration, Party, arbitrate
from tests.support.kin import fine_tuned, public_base
from tests.support.small_protected import PASSPORT, protected
from tests.support.time_stamping_authority import NOON, Authority

# Marks are put into trained models here on purpose, at any cost in accuracy.
pytestmark = pytest.mark.filterwarnings(
    "ignore::passportize.training.embedding.TrainedWeightsWarning"
)

THIEF = pp.Passport.generate("Mallory", date="2026-02-01", secret=bytes(range(1, 33)))
EARLY, LATE = date(2026, 1, 31), date(2026, 6, 1)


def marked_copy(
    model: nn.Module, passport: pp.Passport, margin: float = 2.0
) -> tuple[nn.Module, pp.Claim]:
    """A copy into which somebody has put a mark of their own."""
    config = pp.PassportConfig.keyed(margin=margin)
    copied = pp.passportize(copy.deepcopy(model), passport, config=config)
    pp.embed_signature(copied)
    claim = claim_of(copied)
    switch_of(copied).saved = True
    return pp.unpassportize(copied), claim


def owner(published_on: date | None = None) -> Party:
    original = protected("keyed")
    digest = original.claim.digest() if published_on else ""
    return Party(PASSPORT, original.claim, original.copy(), digest, published_on)


def thief(published_on: date | None = None) -> Party:
    stolen, claim = marked_copy(protected("keyed").plain, THIEF)
    return Party(THIEF, claim, stolen, claim.digest() if published_on else "", published_on)


def both_ways(first: Party, second: Party) -> Arbitration:
    """The order of the parties changes nothing."""
    result, turned = arbitrate(first, second), arbitrate(second, first)
    assert result.reason == turned.reason
    assert turned.owner == (None if result.owner is None else 1 - result.owner)
    return result


def test_a_copy_carries_the_mark_of_its_origin() -> None:
    result = both_ways(owner(), thief())
    assert result.owner == 0
    assert all(v.accepted and v.same_weights for v in result.own)
    assert result.other[0].accepted and result.other[0].links is None
    # The thief's mark does not read in the original, aligned or not; that they are kin, it shows.
    links = result.other[1].links
    assert result.other[1].strength < 10 and links is not None and links.kin
    assert links.accepted is False and links.aligned_strength < 10
    text = str(result)
    assert "decision: the origin is Acme's" in text and "Mallory: no published claim" in text
    assert json.loads(json.dumps(result.to_dict()))["owner"] == 0
    assert bytes(range(32)).hex() not in text


def test_dates_do_not_outweigh_the_marks() -> None:
    """A thief who publishes first has still nothing in the original."""
    assert both_ways(owner(LATE), thief(EARLY)).owner == 0


def test_a_disguised_copy_without_a_claim_of_its_own() -> None:
    party = thief()
    assert isinstance(party.weights, nn.Module)
    disguise(party.weights)
    # Their claim was made for weights that they no longer show.
    result = both_ways(owner(), party)
    assert result.owner == 0 and result.other[0].links is not None


def disguise(model: nn.Module) -> None:
    x = torch.randn(2, 1, 8, 8)
    permute_channels(model, torch.Generator().manual_seed(0), example_inputs=x)
    assert not pp.verify(model, PASSPORT, protected("keyed").claim).accepted


@pytest.mark.parametrize("days", [(EARLY, LATE), (None, None), (None, LATE), (LATE, EARLY)])
def test_a_disguised_and_marked_copy_carries_the_mark_of_its_origin(
    days: tuple[date | None, date | None],
) -> None:
    """Nobody published, or the thief alone: the marks have a direction, whatever the dates say."""
    plain = protected("keyed").copy()
    disguise(plain)
    stolen, claim = marked_copy(plain, THIEF)
    digest = claim.digest() if days[1] else ""
    result = both_ways(owner(days[0]), Party(THIEF, claim, stolen, digest, days[1]))
    assert result.owner == 0
    assert "found once a disguise was undone" in str(result) and "likeness" in str(result)


def test_a_widened_and_marked_copy_carries_the_mark_of_its_origin() -> None:
    """The other way round the original is narrower than what the thief released."""
    plain = protected("keyed").copy()
    for variant in VARIANTS:
        assert add_dummy_neurons(plain, variant, 0.2, example_inputs=torch.randn(2, 1, 8, 8))
    stolen, claim = marked_copy(plain, THIEF)
    result = both_ways(owner(), Party(THIEF, claim, stolen, claim.digest(), EARLY))
    assert result.owner == 0 and result.other[1].accepted is not True
    assert "found once a disguise was undone" in str(result)


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        ((EARLY, LATE), 0),
        ((LATE, EARLY), 1),
        ((EARLY, None), 0),
        ((None, None), None),
        ((EARLY, EARLY), None),
    ],
)
def test_both_marks_in_both(days: tuple[date | None, date | None], expected: int | None) -> None:
    """Whoever shows the other's copy as their own leaves the decision to the dates."""
    second = thief(days[1])
    assert isinstance(second.weights, nn.Module)
    original = protected("keyed").claim
    again, claim = marked_copy(second.weights, PASSPORT)
    assert claim.layout.digest() == original.layout.digest()
    first = Party(PASSPORT, claim, again, claim.digest() if days[0] else "", days[0])
    # The second now shows what carries both marks from the start.
    third, own = marked_copy(again, THIEF)
    second = Party(THIEF, own, third, own.digest() if days[1] else "", days[1])
    result = both_ways(first, second)
    assert all(v.accepted for v in (*result.own, *result.other))
    assert result.owner == expected


def test_another_claim_than_the_published_one_has_no_date() -> None:
    party = Party(PASSPORT, protected("keyed").claim, protected("keyed").copy(), "ab" * 32, EARLY)
    result = arbitrate(party, thief())
    assert result.dated == (None, None)
    assert "not the digest of the claim" in result.notes[0] and result.notes[0] in str(result)


# --- kin: alike, and neither has the other's mark ------------------------------------------------


def kin(base: nn.Module, passport: pp.Passport, seed: int, day: date | None = None) -> Party:
    """Somebody's honest fine-tuning of a public model, with a mark of their own."""
    marked, claim = marked_copy(fine_tuned(base, seed), passport)
    return Party(passport, claim, marked, claim.digest() if day else "", day)


DAYS = [(EARLY, LATE), (LATE, EARLY), (EARLY, None), (None, EARLY), (None, None)]


@pytest.mark.parametrize("days", DAYS)
def test_two_fine_tunings_of_one_base_decide_nothing(
    days: tuple[date | None, date | None],
) -> None:
    """Common ancestor: both innocent, whoever published."""
    base = public_base()
    first, second = kin(base, PASSPORT, 1, days[0]), kin(base, THIEF, 2, days[1])
    result = both_ways(first, second)
    assert result.owner is None and "kin, direction unknown" in result.reason
    assert "base=" in result.reason and "the weights are kin" in str(result)
    assert arbitrate(first, second, base=base.state_dict()).owner is None
    cleared = arbitrate(first, second, base=base.state_dict())
    assert "nothing shows that they are related beyond the base" in cleared.reason


def test_squatting_on_a_public_base_gives_nobody_elses_work() -> None:
    """Somebody marks the public model itself and publishes before all others."""
    base = public_base()
    squatted, claim = marked_copy(base, THIEF)
    squatter = Party(THIEF, claim, squatted, claim.digest(), EARLY)
    honest = kin(base, PASSPORT, 1, LATE)
    assert both_ways(honest, squatter).owner is None
    assert arbitrate(honest, squatter, base=base).owner is None
    # A base that is too old takes nothing out, and is for the judge to refuse.
    torch.manual_seed(1)
    older = arbitrate(honest, squatter, base=type(base)())
    assert older.owner == 1 and "alike beyond the base" in older.reason
    # Who builds on the marked model carries that mark, and it comes from there.
    on_it = kin(squatted, PASSPORT, 1)
    assert arbitrate(on_it, squatter, base=base).owner == 1


@pytest.mark.parametrize(
    ("days", "expected"), list(zip(DAYS, (0, 1, None, None, None), strict=True))
)
def test_erased_and_marked_again_leaves_two_published_dates(
    days: tuple[date | None, date | None], expected: int | None
) -> None:
    """A thief who knew the owner's key: neither mark is in the other's weights."""
    base = public_base()
    first = kin(base, PASSPORT, 1, days[0])
    assert isinstance(first.weights, nn.Module) and isinstance(first.claim, pp.Claim)
    erased = copy.deepcopy(first.weights)
    erase(erased, first.claim)
    stolen, claim = marked_copy(erased, THIEF, 0.5)
    second = Party(THIEF, claim, stolen, claim.digest() if days[1] else "", days[1])
    assert both_ways(first, second).owner is None
    result = arbitrate(first, second, base=base)
    assert result.owner == expected and "alike beyond the base" in result.reason


def erase(model: nn.Module, claim: pp.Claim) -> None:
    """Turn over what a coin says of all bits, as only the owner's key allows."""
    key = ModelKey(PASSPORT, claim.layout)
    flipped = torch.rand(claim.layout.bits, generator=torch.Generator().manual_seed(3)) < 0.5
    start = 0
    weights = dict(model.named_parameters())
    for index, site in enumerate(claim.layout.sites):
        for part, vectors in zip(anchor_of(site).parts, key.sides(index), strict=True):
            weight = weights[part.weight]
            rows = rows_of(weight, part).double()
            window = vectors.window or slice(None)
            _, t, _ = vectors.signs(torch.float64)
            turn = t * (rows[:, window] * t).sum(1, keepdim=True) * -1.1 / t.shape[1]
            turn[~flipped[start : start + part.channels]] = 0
            with torch.no_grad():
                weight.copy_(added_to_rows(weight, part, turn, window))
            start += part.channels


def test_models_that_have_nothing_in_common() -> None:
    torch.manual_seed(5)
    stranger, claim = marked_copy(type(protected("keyed").plain)(), THIEF)
    result = both_ways(owner(), Party(THIEF, claim, stranger))
    assert result.owner is None and "nothing shows" in result.reason


def test_without_weights_of_ones_own_there_is_no_claim() -> None:
    stolen, claim = marked_copy(protected("keyed").plain, THIEF)
    bare = Party(THIEF, claim, protected("keyed").copy())
    assert both_ways(owner(), bare).owner == 0
    nobody = Party(THIEF, claim, type(stolen)())
    result = both_ways(owner(), nobody)
    assert result.owner is None
    original = protected("keyed")
    torch.manual_seed(1)
    assert both_ways(Party(PASSPORT, original.claim, type(stolen)()), nobody).owner is None


def test_files_and_errors(tmp_path: Path) -> None:
    original = protected("keyed")
    torch.save(original.plain.state_dict(), tmp_path / "released.pth")
    party = Party(PASSPORT, original.claim, tmp_path / "released.pth", model=original.copy())
    assert arbitrate(party, thief()).owner == 0
    with pytest.raises(InvalidArgument, match="same passport"):
        arbitrate(owner(), owner())
    with pytest.raises(WrongPassport):
        arbitrate(Party(THIEF, original.claim, original.copy()), owner())


# --- dates from release commitments ------------------------------------------------------------


AUTHORITY = Authority()


@pytest.fixture(scope="module")
def both_marked() -> tuple[Party, Party]:
    """Both marks are in both weights, so that nothing but dates is left."""
    second = thief()
    assert isinstance(second.weights, nn.Module)
    again, claim = marked_copy(second.weights, PASSPORT)
    third, own = marked_copy(again, THIEF)
    return Party(PASSPORT, claim, again), Party(THIEF, own, third)


def committed(
    party: Party, folder: Path, time: datetime | None, *, day: str = "2026-11-26", checked=True
) -> Party:
    """The party with its release commitment, timestamped or not, opened as a judge would."""
    assert isinstance(party.claim, pp.Claim)
    made = pp.commit_release(party.passport, party.claim, date=day)
    if time is not None:
        made = made.with_timestamp(AUTHORITY.response(made.stamped_bytes(), time))
    roots = folder / "roots.pem"
    roots.write_bytes(AUTHORITY.roots_pem())
    opened = pp.open_commitment(
        made,
        passport=party.passport,
        claim=party.claim,
        roots=roots if time is not None and checked else None,
    )
    return replace(party, commitment=opened)


def test_the_timestamp_of_a_commitment_decides(
    both_marked: tuple[Party, Party], tmp_path: Path
) -> None:
    """To the second, where two days would be one."""
    first, second = both_marked
    early = committed(first, tmp_path, NOON)
    result = both_ways(early, committed(second, tmp_path, NOON + timedelta(hours=1)))
    assert result.owner == 0 and result.dated == (NOON.date(), NOON.date())
    assert "Acme: their commitment is timestamped: 2026-01-31T12:00:00Z" in str(result)
    assert "on the word of CN=Test TSA" in result.notes[0]
    later = committed(second, tmp_path, NOON - timedelta(hours=1))
    assert both_ways(early, later).owner == 1
    # Each authority says that it may be off by a second.
    close = committed(second, tmp_path, NOON + timedelta(seconds=2))
    result = both_ways(early, close)
    assert result.owner is None and "measurably before" in result.reason
    assert both_ways(early, second).owner == 0


def test_the_word_of_an_owner_does_not_count(
    both_marked: tuple[Party, Party], tmp_path: Path
) -> None:
    first, second = both_marked
    early = committed(first, tmp_path, None, day="2001-01-01")
    result = both_ways(early, committed(second, tmp_path, NOON))
    assert result.owner == 1 and result.dated == (None, NOON.date())
    assert "2001-01-01, is their own word alone (it has no timestamp)" in result.notes[0]
    result = both_ways(early, second)
    assert result.owner is None and "neither claim was published" in result.reason
    unchecked = committed(first, tmp_path, NOON, checked=False)
    result = both_ways(unchecked, second)
    assert result.owner is None and "its timestamp was not checked" in result.notes[0]


def test_a_day_that_was_told_is_said_to_be_so(
    both_marked: tuple[Party, Party], tmp_path: Path
) -> None:
    first, second = both_marked
    assert isinstance(second.claim, pp.Claim)
    told = replace(second, published=second.claim.digest(), published_on=EARLY)
    result = both_ways(committed(first, tmp_path, NOON), told)
    # Noon of that day against that day.
    assert result.owner is None
    assert "Mallory: the day 2026-01-31 was given to arbitrate as it is" in result.notes[1]
    assert both_ways(committed(first, tmp_path, NOON - timedelta(days=1)), told).owner == 0


def test_a_commitment_to_something_else_has_no_date(
    both_marked: tuple[Party, Party], tmp_path: Path
) -> None:
    first, second = both_marked
    other = committed(replace(first, claim=protected("keyed").claim), tmp_path, NOON)
    borrowed = committed(second, tmp_path, NOON)
    for commitment in (other.commitment, borrowed.commitment):
        result = arbitrate(replace(first, commitment=commitment), second)
        assert result.dated == (None, None) and result.owner is None
        assert "not to the passport and claim shown here" in result.notes[0]


def test_one_source_of_dates(both_marked: tuple[Party, Party], tmp_path: Path) -> None:
    first, second = both_marked
    party = replace(committed(first, tmp_path, NOON), published_on=EARLY)
    with pytest.raises(InvalidArgument, match="brings a commitment and published="):
        arbitrate(party, second)
