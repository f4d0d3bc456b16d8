"""A suspect that is covered with noise is read from what its layers do on the owner's inputs."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_linear_bn_eval

import passportize as pp
from passportize.attacks import (
    add_noise,
    drown_weights,
    permute_channels,
    project_weights,
    prune_weights,
    quantise_weights,
)
from passportize.attacks.disguise import disguise
from passportize.attacks.dummy_neurons import add_dummy_neurons
from passportize.errors import InvalidArgument
from passportize.layers.model import switch_of
from passportize.release.claim import Claim, claim_of
from passportize.release.inputs_file import inputs_digest
from passportize.report.findings import sentence_of
from passportize.signature.evidence import LOOKS_PRICE, read_evidence
from passportize.signature.model_key import ModelKey
from passportize.signature.vectors import SignVectors
from passportize.thresholds import FITTED_WAYS, Penalty
from passportize.training.refitting import refit_weights
from passportize.verification.refitted import refit_suspect
from passportize.verification.suspect import open_suspect

PASSPORT = pp.Passport.generate("Acme", date="2026-11-28", secret=bytes(range(5, 37)))
CLASSES, USED = 4, 32


def samples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points about the centres of four classes, in 32 of 96 directions but for a little noise."""
    fixed = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, USED, generator=fixed)
    into = torch.randn(USED, 96, generator=fixed)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    inner = centres[labels] + 0.7 * torch.randn(count, USED, generator=generator)
    return inner @ into / 6 + 0.01 * torch.randn(count, 96, generator=generator), labels


OWN = [samples(300, 1)[0], samples(212, 2)[0]]
THIEFS = [samples(400, 3)[0]]


def network() -> nn.Module:
    def step(before: int, after: int) -> list[nn.Module]:
        return [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()]

    return nn.Sequential(*step(96, 400), *step(400, 300), nn.Linear(300, CLASSES))


def trained(config: pp.PassportConfig | None, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network()
        if config is not None:
            model = pp.passportize(model, PASSPORT, config=config, example_inputs=OWN[0][:4])
            pp.embed_signature(model)
        x, y = samples(2000, 10 + seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(3):
            for at in torch.randperm(len(x)).split(50):
                loss = nn.functional.cross_entropy(model(x[at]), y[at])
                if config is not None:
                    loss = pp.joint_loss(model, x[at], y[at], nn.functional.cross_entropy).total
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return model.eval()


@functools.cache
def released() -> tuple[nn.Module, Claim]:
    """A network that was trained with a mark, which was put in once more with inputs before the
    release, and the claim on it."""
    model = trained(pp.PassportConfig.signature(inputs=inputs_digest(OWN)), 0)
    pp.embed_signature(model, calibration=OWN, output_share=0.01)
    claim = claim_of(model)
    switch_of(model).saved = True
    return pp.unpassportize(model), claim


def accuracy(model: nn.Module) -> float:
    x, y = samples(1000, 4)
    with torch.no_grad():
        return 100 * float((model(x).argmax(1) == y).float().mean())


def drowned() -> nn.Module:
    """What a thief with other inputs makes of it, at no loss."""
    model = copy.deepcopy(released()[0])
    project_weights(model, THIEFS, energy=0.97)
    drown_weights(model, THIEFS, 3e-4, 1e-4, torch.Generator().manual_seed(0))
    return model


def test_noise_takes_the_mark_for_nothing_and_the_owners_inputs_bring_it_back() -> None:
    original, claim = released()
    suspect = drowned()
    assert accuracy(original) > 90 and accuracy(original) - accuracy(suspect) < 2
    plainly = pp.verify(suspect, PASSPORT, claim)
    assert plainly.accepted is False and plainly.strength < 40
    before = copy.deepcopy(suspect.state_dict())
    found = pp.verify(suspect, PASSPORT, claim, inputs=OWN)
    assert found.accepted and found.strength > 100
    assert any("fitted anew" in note for note in found.notes) and found.fitted
    said = sentence_of(found, "Acme")
    assert said.startswith("This model, in what its layers do on the owner's inputs, carries")
    assert not plainly.fitted and "inputs" not in sentence_of(plainly, "Acme")
    assert found.message is not None and found.message.owner == "Acme"
    after = suspect.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_state_dict_and_a_file_do_with_a_model(tmp_path: Path) -> None:
    _, claim = released()
    suspect = drowned()
    file = tmp_path / "suspect.pth"
    torch.save({f"net.{name}": value for name, value in suspect.state_dict().items()}, file)
    pp.save_inputs(OWN, tmp_path / "own.safetensors")
    named = {"inputs": tmp_path / "own.safetensors", "model": network()}
    live = pp.verify(suspect, PASSPORT, claim, inputs=OWN)
    for each in (suspect.state_dict(), file):
        found = pp.verify(each, PASSPORT, claim, **named)
        assert found.accepted and found.matched == live.matched
    without = pp.verify(file, PASSPORT, claim, inputs=OWN)
    assert not without.accepted
    assert any("inputs= were not used: weights alone cannot be run" in n for n in without.notes)


@pytest.mark.parametrize(
    "more",
    [
        lambda model: prune_weights(model, 0.5),
        lambda model: quantise_weights(model, 4),
        lambda model: add_noise(model, 0.2, torch.Generator().manual_seed(0)),
    ],
    ids=["pruned", "int4", "noise everywhere"],
)
def test_with_other_changes_on_top(more: Callable[[nn.Module], object]) -> None:
    suspect = drowned()
    more(suspect)
    found = pp.verify(suspect, PASSPORT, released()[1], inputs=OWN)
    assert found.accepted and found.fitted and found.strength > 120


@pytest.mark.parametrize("dummies", [False, True])
def test_below_a_disguise_too(dummies: bool) -> None:
    original, claim = released()
    suspect = drowned()
    if dummies:
        generator = torch.Generator().manual_seed(0)
        assert add_dummy_neurons(suspect, "clique", 0.2, generator, OWN[0][:4]) == 140
    disguise(suspect, torch.Generator().manual_seed(1), example_inputs=OWN[0][:4])
    given = {"released": original, "example_inputs": OWN[0][:4]}
    assert not pp.verify(suspect, PASSPORT, claim, **given).accepted
    found = pp.verify(suspect, PASSPORT, claim, inputs=OWN, **given)
    assert found.accepted and found.links is not None and found.links.accepted
    assert found.links.aligned_strength > 64
    said = sentence_of(found, "Acme")
    assert "undone, this model, in what its layers do on the owner's inputs, carries" in said


def test_who_covers_a_mark_and_puts_in_another_is_not_the_origin() -> None:
    original, claim = released()
    theirs = drowned()
    mallory = pp.Passport.generate("Mallory", date="2026-11-28", secret=bytes(range(32)))
    config = pp.PassportConfig.signature()
    marked = pp.passportize(theirs, mallory, config=config, example_inputs=OWN[0][:4])
    pp.embed_signature(marked, calibration=THIEFS)
    their_claim = claim_of(marked)
    switch_of(marked).saved = True
    second = pp.Party(mallory, their_claim, pp.unpassportize(marked))
    without = pp.arbitrate(pp.Party(PASSPORT, claim, original), second)
    assert without.owner is None
    found = pp.arbitrate(pp.Party(PASSPORT, claim, original, inputs=OWN), second)
    assert found.owner == 0 and found.other[0].fitted


@pytest.mark.parametrize("with_original", [False, True])
def test_whose_copy_it_was_is_told_too(with_original: bool) -> None:
    config = pp.PassportConfig.trained(bits=200, licence_bits=400, inputs=inputs_digest(OWN))
    plain = trained(None, 0)
    model = pp.passportize(plain, PASSPORT, config=config, example_inputs=OWN[0][:4])
    pp.embed_signature(model, calibration=OWN, output_share=0.02)
    claim = claim_of(model)
    switch_of(model).saved = True
    original = pp.unpassportize(model)
    copied = copy.deepcopy(original)
    holder = PASSPORT.licensee("Beta GmbH")
    pp.mark_copy(copied, holder, claim, calibration=OWN, output_share=0.02)
    before = accuracy(copied)
    drown_weights(copied, THIEFS, 1e-3, 1e-4, torch.Generator().manual_seed(0))
    assert before - accuracy(copied) < 2
    names = ["Alpha AG", "Beta GmbH", "Gamma Ltd"]
    given = {"released": original} if with_original else {}
    assert not pp.identify(copied, PASSPORT, names, claim, **given).named
    found = pp.identify(copied, PASSPORT, names, claim, inputs=OWN, **given)
    assert found.named == ("Beta GmbH",)
    assert any("fitted anew" in note for note in found.notes)


def test_a_row_that_a_thief_makes_huge_does_not_speak_for_the_others() -> None:
    """It gives one channel away for a row along the strongest direction; each is fitted alone."""
    original, claim = released()
    suspect = drowned()
    hidden = suspect[:3](THIEFS[0]).detach()
    with torch.no_grad():
        for place, x in ((0, THIEFS[0]), (3, hidden)):
            layer, norm = suspect[place], suspect[place + 1]
            layer.weight[0] = 1e4 * torch.linalg.svd(x, full_matrices=False)[2][0]
            made = layer(x)[:, 0]
            norm.running_mean[0], norm.running_var[0] = made.mean(), made.var()
    assert accuracy(original) - accuracy(suspect) < 2
    found = pp.verify(suspect, PASSPORT, claim, inputs=OWN)
    assert found.accepted and found.strength > 0.9 * _strength_of_the_drowned()


def _strength_of_the_drowned() -> float:
    return pp.verify(drowned(), PASSPORT, released()[1], inputs=OWN).strength


@pytest.mark.parametrize("permuted", [False, True])
def test_norms_that_were_folded_away_do_not_matter(permuted: bool) -> None:
    original, claim = released()
    suspect = drowned()
    if permuted:
        permute_channels(suspect, torch.Generator().manual_seed(0), example_inputs=OWN[0][:4])
    for place in (0, 3):
        suspect[place] = fuse_linear_bn_eval(suspect[place], suspect[place + 1])
        suspect[place + 1] = nn.Identity()
    given = {"model": network(), "example_inputs": OWN[0][:4]}
    if permuted:
        given["released"] = original
    assert not pp.verify(suspect.state_dict(), PASSPORT, claim, **given).accepted
    assert pp.verify(suspect.state_dict(), PASSPORT, claim, inputs=OWN, **given).accepted


class Discarding(nn.Module):
    """What a layer makes of numbers that are not finite, and nobody reads."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.beside = layers, nn.Linear(96, 64)

    def forward(self, x: Tensor) -> Tensor:
        self.beside(x / 0.0)
        return self.layers(x)


def test_numbers_that_are_not_finite_switch_nothing_off() -> None:
    _, claim = released()
    suspect = Discarding(drowned()).eval()
    assert not pp.verify(suspect, PASSPORT, claim).accepted
    assert pp.verify(suspect, PASSPORT, claim, inputs=OWN).accepted


def test_a_stranger_reads_at_chance_in_every_way() -> None:
    original, claim = released()
    stranger = trained(None, 5)
    given = {"released": original, "example_inputs": OWN[0][:4]}
    for more in ({}, given):
        found = pp.verify(stranger, PASSPORT, claim, inputs=OWN, **more)
        assert found.accepted is False
        assert any("do not carry the signature either" in note for note in found.notes)


@functools.cache
def marked_afterwards() -> tuple[nn.Module, Claim]:
    """A trained network with a deep mark that was put in after the training, and the claim."""
    config = pp.PassportConfig.trained(bits=700, inputs=inputs_digest(OWN))
    model = pp.passportize(
        trained(None, 0), PASSPORT, config=config, example_inputs=OWN[0][:4]
    ).eval()
    pp.embed_signature(model, calibration=OWN, output_share=0.1)
    claim = claim_of(model)
    return pp.unpassportize(model), claim


def test_noise_where_a_deep_mark_lies_leaves_what_rows_do_with_the_strongest_inputs() -> None:
    original, claim = marked_afterwards()
    assert accuracy(original) > 99 and pp.verify(original, PASSPORT, claim).matched == 700
    suspect = copy.deepcopy(original)
    project_weights(suspect, THIEFS, energy=0.97)
    drown_weights(suspect, THIEFS, 0.1, 0.1, torch.Generator().manual_seed(0))
    assert 96 < accuracy(suspect) < accuracy(original)
    assert pp.verify(suspect, PASSPORT, claim).accepted is False
    strengths = {}
    for penalty in FITTED_WAYS:
        fitted = copy.deepcopy(suspect)
        refit_weights(fitted, OWN, penalty=penalty)
        strengths[penalty] = pp.verify(fitted, PASSPORT, claim).strength
    assert strengths["inputs"] > 250 > 2 * max(strengths["rows"], strengths["weights"])
    assert pp.verify(suspect, PASSPORT, claim, inputs=OWN).accepted
    # The same of a network that nobody marked.
    stranger = trained(None, 5)
    drown_weights(stranger, THIEFS, 0.1, 0.1, torch.Generator().manual_seed(0))
    assert pp.verify(stranger, PASSPORT, claim, inputs=OWN).accepted is False


@pytest.mark.parametrize("penalty", FITTED_WAYS)
def test_strangers_keys_match_half_of_the_bits_of_fitted_layers(penalty: Penalty) -> None:
    _, claim = released()
    suspect = refit_suspect(open_suspect(released()[0], None), OWN, penalty)
    assert not isinstance(suspect, str)
    shares = []
    for number in range(40):
        passport = pp.Passport.generate(
            "Nobody", date="2026-11-28", secret=number.to_bytes(32, "big")
        )
        evidence = read_evidence(suspect.tensors, ModelKey(passport, claim.layout), claim.layout)
        shares.append(evidence.reading.matched)
    total = claim.layout.bits
    # 40 binomials; looks by assignment are the better of a few.
    assert abs(sum(shares) / len(shares) - total / 2) < 5 * (total / 4 / len(shares)) ** 0.5 + 2


def test_more_ways_of_looking_are_paid_for_whether_they_are_used_or_not() -> None:
    original, claim = released()
    for inputs in (None, OWN):
        found = pp.verify(original, PASSPORT, claim, inputs=inputs)
        assert found.accepted and found.log2_alternatives == pytest.approx(
            LOOKS_PRICE + math.log2(4)
        )
        assert not any("fitted" in note for note in found.notes)


def crafted_inputs(key: ModelKey) -> list[Tensor]:
    """Inputs along one direction that answers as the key's bits say, whoever's rows they meet.

    What is left of a row that is fitted to such inputs is a multiple of that direction.
    """
    (side,) = key.sides(0)
    assert isinstance(side, SignVectors)
    s, t = side.signs(torch.float64)[:2]
    direction = torch.randn(s.shape[1], dtype=torch.float64).requires_grad_()
    optimizer = torch.optim.Adam([direction], lr=0.1)
    for _ in range(300):
        answers = key.bits() * (s @ direction) * (t @ direction) / direction.square().sum()
        optimizer.zero_grad()
        (-nn.functional.logsigmoid(8 * answers).sum()).backward()
        optimizer.step()
    return [(torch.randn(300, 1, dtype=torch.float64) * direction.detach()).float()]


def test_inputs_that_are_chosen_after_the_key_would_forge_and_are_refused() -> None:
    """The attack, on a stranger's model; what stops it is that the key depends on the inputs."""
    torch.manual_seed(0)
    stranger = trained(None, 6)
    config = pp.PassportConfig.signature(inputs=inputs_digest(OWN))

    def claimed(config: pp.PassportConfig) -> Claim:
        shell = copy.deepcopy(stranger)
        model = pp.passportize(shell, PASSPORT, config=config, where="1", example_inputs=OWN[0][:4])
        claim = claim_of(model)
        switch_of(model).saved = True
        pp.unpassportize(model)
        return claim

    claim = claimed(config)
    key = ModelKey(PASSPORT, claim.layout)
    crafted = crafted_inputs(key)
    suspect = copy.deepcopy(stranger)
    refit_weights(suspect, crafted)
    assert read_evidence(suspect.state_dict(), key, claim.layout).strength > 64
    with pytest.raises(InvalidArgument, match="not the inputs that the claim names"):
        pp.verify(stranger, PASSPORT, claim, inputs=crafted)
    # A claim that names them has another key, which knows nothing of them.
    again = claimed(replace(config, inputs=inputs_digest(crafted)))
    assert not pp.verify(stranger, PASSPORT, again, inputs=crafted).accepted
    # And one that names none allows none.
    none = claimed(pp.PassportConfig.signature())
    with pytest.raises(InvalidArgument, match="before the key was drawn"):
        pp.verify(stranger, PASSPORT, none, inputs=crafted)


def test_what_cannot_be_run_is_said() -> None:
    _, claim = released()
    wrong = nn.Sequential(nn.Linear(7, 400), *list(drowned())[1:])
    with pytest.raises(InvalidArgument, match="cannot be run on inputs="):
        pp.verify(wrong, PASSPORT, claim, inputs=OWN)
    suspect = drowned().state_dict()
    del suspect["3.weight"]
    found = pp.verify(suspect, PASSPORT, claim, inputs=OWN, model=network())
    assert not found.accepted and any("lacks weights of model=" in note for note in found.notes)
