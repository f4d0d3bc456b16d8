"""The signature at once: all bits in, by the least change, and nothing else moved."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import nn

import passportize as pp
from passportize.errors import EmbeddingFailed, InvalidArgument, NotPassportized, PassportLocked
from passportize.layers.model import passport_layers, switch_of
from passportize.release.claim import claim_of
from passportize.signature.response import reach_of
from passportize.signature.turning import moved_rows, turned_rows
from passportize.signature.vectors import companion
from tests.support.small_protected import TinyNet, accuracy, images, live, loader, train

PASSPORT = pp.Passport.generate(owner="Acme", secret=bytes(range(32)))
OTHER = pp.Passport.generate(owner="Mallory", secret=bytes(range(1, 33)))


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
    assert verdict.strength == pytest.approx(done.bits)


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
    model = pp.passportize(plain, OTHER, config=pp.PassportConfig.signature())
    slight = pp.embed_signature(copy.deepcopy(model), margin=0.25)
    full = pp.embed_signature(model)
    assert slight.after == slight.bits == full.after
    assert full.change > 1.5 * slight.change
    with torch.no_grad():
        lost = accuracy(model(x))
    train(model, 1, 0.02)
    with torch.no_grad():
        regained = accuracy(model(x))
    assert lost < 90 < 97 < regained
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

    monkeypatch.setattr("passportize.training.embedding.turned_rows", fails)
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


@settings(max_examples=60, deadline=None)
@given(
    entries=st.integers(8, 300),
    channels=st.integers(1, 9),
    margin=st.floats(0.01, 4.0),
    seed=st.integers(0, 2**31),
)
def test_turned_rows_keep_length_and_margin(
    entries: int, channels: int, margin: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(channels, entries, generator=generator, dtype=torch.float64)
    s = _signs(entries, generator)
    t = companion(s, torch.rand(entries, generator=generator))
    bits = _signs(channels, generator)
    turned = turned_rows(rows, torch.stack([s, t], 1), bits, margin)
    if turned is None:
        return
    length = turned.norm(dim=1)
    assert torch.allclose(length, rows.norm(dim=1))
    reach = reach_of(margin, entries)
    gauge, answer = turned @ s / length, turned @ t / length
    assert bool((gauge.abs() >= 0.99 * reach).all())
    assert bool((torch.sign(gauge) * bits * answer >= 0.99 * reach).all())


def _signs(count: int, generator: torch.Generator) -> torch.Tensor:
    return (torch.randint(0, 2, (count,), generator=generator) * 2 - 1).double()


def test_it_is_the_least_change_by_a_general_optimiser() -> None:
    """Independent calculation: scipy minimises the change under the same constraints."""
    generator = torch.Generator().manual_seed(4)
    entries = 12
    s = _signs(entries, generator)
    t = companion(s, torch.rand(entries, generator=generator))
    rows = torch.randn(4, entries, generator=generator, dtype=torch.float64)
    bits = _signs(4, generator)
    turned = turned_rows(rows, torch.stack([s, t], 1), bits, 2.0)
    assert turned is not None
    reach = 1.01 * reach_of(2.0, entries)
    for row, ours, bit in zip(rows.numpy(), turned.numpy(), bits.numpy(), strict=True):
        length = float(np.linalg.norm(row))
        best = math.inf
        for sign in (1.0, -1.0):
            sides = [sign * s.numpy(), sign * bit * t.numpy()]
            found = minimize(
                lambda x, row=row: float(np.square(x - row).sum()),
                row,
                method="SLSQP",
                constraints=[
                    {"type": "eq", "fun": lambda x, n=length: float(x @ x) - n**2},
                    *(
                        {"type": "ineq", "fun": lambda x, v=v, n=length: float(x @ v) - reach * n}
                        for v in sides
                    ),
                ],
                options={"maxiter": 500, "ftol": 1e-12},
            )
            if found.success:
                best = min(best, float(found.fun))
        assert float(np.square(ours - row).sum()) == pytest.approx(best, rel=1e-3)


def test_raw_rows_move_along_the_vector_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(6, 10, generator=generator, dtype=torch.float64)
    vectors = torch.randn(2, 10, 2, generator=generator, dtype=torch.float64)
    bits = _signs(6, generator)
    moved = moved_rows(rows, vectors, bits, 0.1)
    assert moved is not None
    each = vectors[..., 0].repeat_interleave(3, 0)
    assert bool((bits * (moved * each).sum(1) >= 0.1).all())
    added = moved - rows
    parallel = (added * each).sum(1) / each.norm(dim=1)
    assert torch.allclose(parallel.abs(), added.norm(dim=1))
