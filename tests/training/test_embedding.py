"""The signature at once: all bits in, by the least change, and nothing else moved."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import timm
import torch
from torch import nn

import passportize as pp
from passportize.errors import EmbeddingFailed, InvalidArgument, NotPassportized, PassportLocked
from passportize.layers.model import passport_layers, switch_of
from passportize.release.claim import claim_of
from passportize.signature.response import reach_of
from passportize.signature.turning import turned_rows
from passportize.training.embedding import TrainedWeightsWarning
from tests.support.small_protected import TinyNet, accuracy, images, live, loader, train

PASSPORT = pp.Passport.generate(owner="Acme", date="2026-11-28", secret=bytes(range(32)))
OTHER = pp.Passport.generate(owner="Mallory", date="2026-11-28", secret=bytes(range(1, 33)))


def grouped() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.BatchNorm2d(16),
        nn.ConvTranspose2d(16, 32, 3, groups=4),
        nn.GroupNorm(4, 32),
        nn.Conv2d(32, 32, 3, groups=32),
        nn.InstanceNorm2d(32, affine=True),
    )


def shared() -> nn.Module:
    """Two norms that answer for the same rows."""
    convolution = nn.Conv2d(3, 64, 5)
    return nn.Sequential(
        convolution, nn.BatchNorm2d(64), nn.ReLU(), nn.AvgPool2d(2), nn.BatchNorm2d(64)
    )


MODELS = {
    "tiny": TinyNet,
    "grouped": grouped,
    "shared": shared,
    "test_vit": lambda: timm.create_model("test_vit"),
    "test_vit4": lambda: timm.create_model("test_vit4"),
    "test_convnext": lambda: timm.create_model("test_convnext"),
    "test_byobnet": lambda: timm.create_model("test_byobnet"),
    "test_resnet": lambda: timm.create_model("test_resnet"),
    "efficientnet_cc_b0_4e": lambda: timm.create_model("efficientnet_cc_b0_4e"),
    "test_nfnet": lambda: timm.create_model("test_nfnet"),
}

NORM_FREE = "test_nfnet"


def build(name: str, preset: str, passport: pp.Passport = PASSPORT) -> nn.Module:
    torch.manual_seed(0)
    config = getattr(pp.PassportConfig, preset)()
    inputs = torch.randn(2, 3, 16, 16) if name in ("grouped", "shared") else None
    return pp.passportize(MODELS[name](), passport, config=config, example_inputs=inputs)


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        *itertools.product([name for name in MODELS if name != NORM_FREE], ["keyed", "paper"]),
        *((name, "signature") for name in MODELS),
    ],
)
def test_all_bits_are_in_and_verify_reads_them(name: str, preset: str) -> None:
    model = build(name, preset)
    names = {part.weight for layer in passport_layers(model).values() for part in _parts(layer)}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    done = pp.embed_signature(model)
    assert torch.equal(random, torch.get_rng_state())
    assert done.after == done.bits and 0.3 < done.before / done.bits < 0.7
    assert 0 < done.change <= done.largest_change
    assert str(done).startswith(f"{done.bits} of {done.bits} bits")
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) or key in names
    if preset != "paper":
        for layer in passport_layers(model).values():
            missing = _missing_margins(layer)
            assert missing <= 1e-3, layer.passport.site.name
    # Once is enough.
    again = pp.embed_signature(model)
    assert again.before == again.bits and again.change == 0.0
    claim = claim_of(model)
    verdict = pp.verify(pp.unpassportize(model), PASSPORT, claim)
    assert verdict.matched == verdict.total == done.bits
    # One of five looks where rows lie behind factors (LayerScale), else one of four.
    factors = any(part.factor for site in claim.sites if site.anchor for part in site.anchor.parts)
    assert verdict.strength == pytest.approx(done.bits - math.log2(5 if factors else 4))


def _parts(layer: pp.PassportLayer):
    return layer.passport.site.anchor.parts if layer.passport.bound else ()


@torch.no_grad()
def _missing_margins(layer: pp.PassportLayer) -> float:
    branch = layer.passport
    if not branch.bound:
        return 0.0
    found, worst, start = branch.responses(), 0.0, 0
    for channels, entries in branch.parts:
        rows = slice(start, start + channels)
        reach = reach_of(branch.config.margin, entries)
        bits = branch.secret.bits[rows]
        least = torch.minimum(found.gauge[rows].abs(), bits * found.gamma[rows])
        worst, start = max(worst, float((reach - least).max()) / reach), start + channels
    return worst


def test_lengths_of_rows_stay() -> None:
    model = build("tiny", "keyed")
    before = model.conv3.weight.flatten(1).norm(dim=1)
    pp.embed_signature(model)
    assert torch.allclose(model.conv3.weight.flatten(1).norm(dim=1), before, rtol=1e-5)


def test_a_strangers_bits_stay_a_coin() -> None:
    model = build("test_resnet", "keyed")
    pp.embed_signature(model)
    plain = pp.unpassportize(model)
    verdict = pp.verify(plain, OTHER)
    assert not verdict.accepted
    assert abs(verdict.matched / verdict.total - 0.5) < 0.08


@pytest.mark.parametrize("name", ["tiny", "test_vit", "test_byobnet"])
def test_a_second_mark_leaves_the_first_readable(name: str) -> None:
    """Overwriting: the thief's mark is put in as strongly, and the owner's stays."""
    model = build(name, "keyed")
    pp.embed_signature(model)
    claim = claim_of(model)
    thief = pp.passportize(pp.unpassportize(model), OTHER)
    assert pp.embed_signature(thief).change > 0.05
    verdict = pp.verify(pp.unpassportize(thief), PASSPORT, claim)
    assert verdict.accepted
    assert verdict.matched > 0.9 * verdict.total


def test_training_keeps_what_was_put_in() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = pp.passportize(TinyNet(), PASSPORT)
        pp.embed_signature(model)
        train(model, 2, 0.05)
    claim = claim_of(model)
    switch_of(model).saved = True
    verdict = pp.verify(pp.unpassportize(model), PASSPORT, claim, loader())
    assert verdict.accepted and verdict.matched == verdict.total


def test_a_trained_model_loses_accuracy_and_regains_it() -> None:
    plain = copy.deepcopy(live("signature"))
    switch_of(plain).saved = True
    pp.unpassportize(plain)
    x, _ = images("test")
    with torch.no_grad():
        before = accuracy(plain(x))
    model = pp.passportize(plain, OTHER, config=pp.PassportConfig.signature())
    with pytest.warns(TrainedWeightsWarning, match="calibration="):
        slight = pp.embed_signature(copy.deepcopy(model), margin=0.25)
        full = pp.embed_signature(model, margin=4.0)
    assert slight.after == slight.bits == full.after
    assert full.change > 1.5 * slight.change
    with torch.no_grad():
        lost = accuracy(model(x))
    train(model, 1, 0.02)
    with torch.no_grad():
        regained = accuracy(model(x))
    # With vectors that rows share it fell below 90 at half of this margin.
    assert lost < before - 1.5 and regained > lost + 1
    assert pp.signature_accuracy(model) == 1.0


def test_half_precision() -> None:
    model = build("test_vit", "keyed").to(torch.bfloat16)
    done = pp.embed_signature(model)
    assert done.after == done.bits


def test_a_row_of_zeros_stays() -> None:
    model = build("tiny", "keyed")
    with torch.no_grad():
        model.conv2.weight[3] = 0.0
    done = pp.embed_signature(model)
    assert done.after >= done.bits - 1
    assert not bool(model.conv2.weight[3].any())


def test_parametrized_weights() -> None:
    model = TinyNet()
    nn.utils.parametrizations.weight_norm(model.conv2)
    pp.passportize(model, PASSPORT, example_inputs=torch.randn(2, 1, 8, 8))
    done = pp.embed_signature(model)
    assert done.after == done.bits


def test_an_error_half_way_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("tiny", "keyed")
    before = {key: value.clone() for key, value in model.state_dict().items()}

    def fails(rows: torch.Tensor, *rest: object) -> torch.Tensor | None:
        if len(rows) == 128:
            raise KeyboardInterrupt
        return turned_rows(rows, *rest)

    monkeypatch.setattr("passportize.signature.formulations.turned_rows", fails)
    with pytest.raises(KeyboardInterrupt):
        pp.embed_signature(model)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_errors_say_what_to_do() -> None:
    with pytest.raises(NotPassportized):
        pp.embed_signature(TinyNet())
    model = build("tiny", "keyed")
    for margin in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InvalidArgument, match="margin"):
            pp.embed_signature(model, margin=margin)
    with torch.device("meta"):
        meta = pp.passportize(timm.create_model("test_vit"), PASSPORT)
    with pytest.raises(EmbeddingFailed, match="has no values"):
        pp.embed_signature(meta)
    for layer in passport_layers(model).values():
        layer.passport.secret = type(layer.passport.secret)()
    with pytest.raises(PassportLocked):
        pp.embed_signature(model)
