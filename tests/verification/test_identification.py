"""Copies of licensees told apart, alone and mixed; nobody uninvolved is named."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import passportize as pp
from passportize.attacks import flip_channel_signs, permute_channels, project_weights
from passportize.errors import ClaimMismatch, InvalidArgument, PassportError, WrongPassport
from passportize.release.claim import claim_of
from passportize.signature.licence_code import (
    FULL,
    LEVELS,
    LicenceCode,
    log2_tails,
    scores,
    thresholds,
)
from passportize.signature.null_model import log2_binomial_tail

PASSPORT = pp.Passport.generate("Acme", date="2026-01-31", secret=bytes(range(32)))
OTHER = pp.Passport.generate("Acme", date="2026-01-31", secret=bytes(range(1, 33)))
NAMES = [f"licensee {number}" for number in range(100)]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(8, 300, 3),
        nn.BatchNorm2d(300),
        nn.ReLU(),
        nn.Conv2d(300, 700, 1),
        nn.BatchNorm2d(700),
        nn.ReLU(),
        nn.Conv2d(700, 700, 1, groups=2),
        nn.BatchNorm2d(700),
    )


INPUTS = torch.rand(12, 8, 6, 6, generator=torch.Generator().manual_seed(1))


@functools.cache
def released() -> tuple[nn.Module, pp.Claim]:
    model = network()
    model(INPUTS)
    config = pp.PassportConfig.trained(bits=150, licence_bits=1400)
    pp.passportize(model.eval(), PASSPORT, config=config, example_inputs=INPUTS)
    pp.embed_signature(model, calibration=[INPUTS])
    claim = claim_of(model)
    return pp.unpassportize(model), claim


@functools.cache
def copy_for(name: str) -> nn.Module:
    model, claim = released()
    copied = copy.deepcopy(model)
    done = pp.mark_copy(copied, PASSPORT.licensee(name), claim, calibration=[INPUTS])
    assert done.bits == 1400 and 0 < done.change < 0.2 and name in str(done)
    return copied


def mixed(names: list[str], how: Callable[[Tensor], Tensor]) -> nn.Module:
    """One model whose every tensor is made of those of several copies, ``[copies, ...]``."""
    states = [copy_for(name).state_dict() for name in names]
    model = copy.deepcopy(copy_for(names[0]))
    state = {
        key: how(torch.stack([each[key] for each in states]))
        if value.is_floating_point() and value.dim() > 1
        else value
        for key, value in model.state_dict().items()
    }
    model.load_state_dict(state)
    return model


def by_rows(stacked: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    chosen = torch.randint(len(stacked), (stacked.shape[1],), generator=generator)
    return stacked[chosen, torch.arange(stacked.shape[1])]


def rarest_row(stacked: Tensor) -> Tensor:
    """Of each row the version that the fewest copies have."""
    rows = stacked.flatten(2)
    alike = (rows[:, None] == rows[None]).all(3).sum(1)
    chosen = alike.argmin(0)
    return stacked[chosen, torch.arange(stacked.shape[1])]


MIXTURES = {
    "averaged": lambda stacked: stacked.mean(0),
    "rows at random": by_rows,
    "rarest rows": rarest_row,
    "beyond each other": lambda stacked: stacked[0] + 2 * (stacked[0] - stacked[1]),
}


def test_the_copy_of_one_is_told_and_keeps_the_bits_of_the_owner() -> None:
    model, claim = released()
    copied = copy_for(NAMES[3])
    found = pp.identify(copied, PASSPORT, NAMES, claim)
    assert found.named == (NAMES[3],) and found.asked == 100 and found.bits == 1400
    assert found.licensees[0].strength > 200
    assert max(each.strength for each in found.licensees[1:]) < 20
    assert pp.verify(copied, PASSPORT, claim).matched == 150
    assert "NAMED  licensee 3" in str(found) and found.to_dict()["named"] == [NAMES[3]]
    # The same name is the same copy, and marking changes nothing but what it says.
    again = copy.deepcopy(model)
    pp.mark_copy(again, PASSPORT.licensee(NAMES[3]), claim, calibration=[INPUTS])
    for key, value in copied.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    with torch.no_grad():
        apart = (copied(INPUTS) - model(INPUTS)).square().mean()
    assert apart < 0.05 * model(INPUTS).detach().var()


@pytest.mark.parametrize(("how", "many"), list(itertools.product(MIXTURES, (2, 3, 4))))
def test_of_those_who_mixed_their_copies_one_is_named_and_nobody_else(how: str, many: int) -> None:
    model, claim = released()
    suspect = mixed(NAMES[10 : 10 + many], MIXTURES[how])
    for original in (None, model):
        found = pp.identify(suspect, PASSPORT, NAMES, claim, released=original)
        assert found.named and set(found.named) <= set(NAMES[10 : 10 + many])


def test_the_release_and_strangers_are_nobodys_copy() -> None:
    model, claim = released()
    for suspect in (model, network()):
        found = pp.identify(suspect, PASSPORT, NAMES, claim)
        assert found.named == ()
    found = pp.identify(copy_for(NAMES[3]), PASSPORT, NAMES[4:], claim)
    assert found.named == () and found.licensees[0].strength < 20


def test_what_a_thief_does_to_a_copy() -> None:
    _, claim = released()
    for attack in (
        lambda suspect: project_weights(suspect, [INPUTS], energy=0.999),
        lambda suspect: flip_channel_signs(suspect, example_inputs=INPUTS),
    ):
        suspect = copy.deepcopy(copy_for(NAMES[5]))
        attack(suspect)
        assert pp.identify(suspect, PASSPORT, NAMES, claim).named == (NAMES[5],)
    state = copy_for(NAMES[5]).state_dict()
    renamed = {f"t{number}": value for number, value in enumerate(state.values())}
    assert pp.identify(renamed, PASSPORT, NAMES, claim).named == (NAMES[5],)


def test_a_disguised_copy_is_aligned() -> None:
    model, claim = released()
    suspect = copy.deepcopy(copy_for(NAMES[5]))
    permute_channels(suspect, torch.Generator().manual_seed(1), example_inputs=INPUTS)
    plain = pp.identify(suspect, PASSPORT, NAMES, claim)
    assert plain.named == () and "do not read plainly" in str(plain)
    found = pp.identify(suspect, PASSPORT, NAMES, claim, released=model, example_inputs=INPUTS)
    assert found.named == (NAMES[5],) and "aligned" in str(found)


def test_files(tmp_path: Path) -> None:
    _, claim = released()
    torch.save(copy_for(NAMES[2]).state_dict(), tmp_path / "leaked.pt")
    found = pp.identify(tmp_path / "leaked.pt", PASSPORT, iter(NAMES), claim)
    assert found.named == (NAMES[2],)


def test_without_inputs_the_rows_change_least() -> None:
    model, claim = released()
    copied = copy.deepcopy(model)
    pp.mark_copy(copied, PASSPORT.licensee("Zeta"), claim)
    assert pp.identify(copied, PASSPORT, ["Zeta", *NAMES], claim).named == ("Zeta",)


def test_the_rows_are_those_that_the_owner_left_over() -> None:
    _, claim = released()
    code = LicenceCode(PASSPORT, claim.layout, 1400, 64)
    from passportize.signature.model_key import ModelKey

    key = ModelKey(PASSPORT, claim.layout)
    owners = {
        (index, row)
        for index in range(len(claim.layout.sites))
        for row in key.sides(index)[0].rows.tolist()
    }
    ours = {(each.site, row) for each in code.rows for row in each.vectors.rows.tolist()}
    assert len(ours) == code.length == 1400 and not ours & owners
    # Another number of bits, or another layout, is another code.
    other = LicenceCode(PASSPORT, claim.layout, 1399, 64)
    assert not torch.equal(code.word("Beta")[:1399], other.word("Beta"))
    assert LicenceCode(PASSPORT, claim.layout, 10**6, 64).length == 1700 - 150
    assert "hidden" in repr(code)


def test_bits_have_the_biases_that_the_key_draws() -> None:
    _, claim = released()
    code = LicenceCode(PASSPORT, claim.layout, 1400, 64)
    biases = code.biases()
    words = torch.stack([code.word(name) for name in NAMES]).double()
    for level, chance in enumerate(thresholds()):
        own = words[:, biases == level]
        deviation = (own.mean() - chance / 65536) / math.sqrt(0.25 / own.numel())
        assert abs(float(deviation)) < 4
    assert len(set(thresholds())) == LEVELS and sum(thresholds()) == 65536 * LEVELS // 2
    ones, zeros = scores()
    assert ones == [-each for each in reversed(zeros)]


@given(
    st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9), st.floats(0.01, 0.99)), max_size=9),
    st.integers(-90, 90),
)
@settings(max_examples=60, deadline=None)
def test_tails_are_exact(terms: list[tuple[int, int, float]], value: int) -> None:
    exact = 0.0
    for chosen in itertools.product((0, 1), repeat=len(terms)):
        total = sum(term[side] for term, side in zip(terms, chosen, strict=True))
        if total >= value:
            exact += math.prod(
                term[2] if side else 1 - term[2] for term, side in zip(terms, chosen, strict=True)
            )
    (found,) = log2_tails(terms, [value])
    assert 2**found == pytest.approx(min(1.0, exact), rel=1e-9, abs=1e-300)


def test_tails_reach_far() -> None:
    (found,) = log2_tails([(0, 1, 0.5)] * 900, [880])
    assert found == pytest.approx(log2_binomial_tail(880, 900), rel=1e-9)


def test_nobody_uninvolved_fits_better_than_the_p_value_says() -> None:
    """Whatever a suspect says, and whoever made it so: the names of others are drawn after it."""
    _, claim = released()
    code = LicenceCode(PASSPORT, claim.layout, 1400, 64)
    generator = torch.Generator().manual_seed(3)
    for said in (
        torch.full((1400,), FULL),
        torch.randint(-FULL, FULL + 1, (1400,), generator=generator),
        (2 * code.word("guilty") - 1) * FULL,
    ):
        sums = [code.score(f"innocent {number}", said) for number in range(400)]
        tails = 2.0 ** torch.tensor(code.log2_p(sums, said))
        for level in (0.5, 0.1, 0.02):
            share = float((tails <= level).double().mean())
            assert share <= level + 4 * math.sqrt(level / 400)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda m, c: pp.mark_copy(m, "Beta", c), InvalidArgument, "passport.licensee"),
        (lambda m, c: pp.mark_copy(m, OTHER.licensee("B"), c), WrongPassport, "another"),
        (lambda m, c: pp.mark_copy(network(), PASSPORT.licensee("B"), c), ClaimMismatch, "digest"),
        (
            lambda m, c: pp.mark_copy(m, PASSPORT.licensee("B"), c, output_share=0),
            InvalidArgument,
            "output_share",
        ),
        (lambda m, c: pp.identify(m, OTHER, NAMES, c), WrongPassport, "another"),
        (lambda m, c: pp.identify(m, PASSPORT, [], c), InvalidArgument, "no licensee"),
        (lambda m, c: pp.identify(m, PASSPORT, "Beta", c), InvalidArgument, "names of all"),
        (lambda m, c: PASSPORT.licensee(" "), InvalidArgument, "printable"),
        (lambda m, c: PASSPORT.licensee(3), InvalidArgument, "text"),
    ],
)
def test_what_makes_no_sense(
    call: Callable[[nn.Module, pp.Claim], object], error: type[Exception], match: str
) -> None:
    model, claim = released()
    with pytest.raises(error, match=match):
        call(copy.deepcopy(model), claim)


def test_a_claim_that_leaves_no_rows_is_refused() -> None:
    model = network()
    pp.passportize(model, PASSPORT, config=pp.PassportConfig.signature(), example_inputs=INPUTS)
    claim = claim_of(model)
    with pytest.raises(InvalidArgument, match="leaves no rows"):
        pp.mark_copy(pp.unpassportize(model), PASSPORT.licensee("Beta"), claim)


def test_an_interrupt_leaves_the_copy_as_it_was() -> None:
    model, claim = released()
    copied = copy.deepcopy(model)

    def interrupt(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pp.mark_copy(
            copied, PASSPORT.licensee("B"), claim, calibration=[INPUTS], progress=interrupt
        )
    for key, value in copied.state_dict().items():
        assert torch.equal(value, model.state_dict()[key])


def test_a_licensee_shows_and_stores_no_secret() -> None:
    import pickle

    licensee = PASSPORT.licensee(" Beta GmbH ")
    assert licensee.name == "Beta GmbH" and repr(licensee) == "Licensee('Beta GmbH')"
    with pytest.raises(PassportError):
        pickle.dumps(licensee)
