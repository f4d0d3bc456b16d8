"""Weight-standardised convolutions: a constant in a kernel is nothing, and moves no bit."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from timm.layers import ScaledStdConv2d, StdConv2d
from timm.models.resnetv2 import ResNetV2
from torch import Tensor, nn
from torch.nn import functional as F

import passportize as pp
from passportize.attacks import kernel_shift as row_shift
from passportize.attacks.kernel_shift import shift_standardised_kernels
from passportize.errors import InvalidArgument
from passportize.layers.model import switch_of
from passportize.release.claim import claim_of
from passportize.signature.rows import anchor_rows
from passportize.signature.site import AnchorPart
from passportize.tracing import weight_layers as weight_modules
from tests.support.round_trip import assert_round_trip

PASSPORT = pp.Passport.generate(owner="Standard", date="2026-11-28", secret=bytes(range(32)))


def with_norms() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        StdConv2d(3, 64, 3),
        nn.GroupNorm(8, 64),
        nn.ReLU(),
        StdConv2d(64, 64, 3, groups=2),
        nn.GroupNorm(8, 64),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 4),
    )


def without_norms() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        ScaledStdConv2d(3, 64, 3),
        nn.ReLU(),
        ScaledStdConv2d(64, 64, 3, groups=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


CASES = {"keyed": with_norms, "signature": without_norms}


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(16, 3, 12, 12, generator=generator), torch.arange(16) % 4


def config_of(preset: str) -> pp.PassportConfig:
    options = {"sign_every": 1} if preset == "signature" else {}
    return getattr(pp.PassportConfig, preset)(**options)


def trained(preset: str) -> nn.Module:
    model, (x, y) = CASES[preset](), batch()
    pp.passportize(model, PASSPORT, config=config_of(preset), example_inputs=x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(80):
        optimizer.zero_grad()
        pp.joint_loss(model, x, y, F.cross_entropy).total.backward()
        optimizer.step()
    return model.eval()


def matched_after_shift(preset: str) -> tuple[int, int, int]:
    """Bits that match before the attack and after it, and how many there are."""
    model = trained(preset)
    claim = claim_of(model)
    switch_of(model).saved = True
    x, _ = batch()
    private = None
    if preset == "keyed":
        with pp.branch(model, "private"), torch.no_grad():
            private = model(x)
    plain = pp.unpassportize(model)
    before = pp.verify(plain, PASSPORT, claim)
    output = plain(x)
    done = shift_standardised_kernels(plain, torch.Generator().manual_seed(2))
    assert [entry.weight for entry in done] == [
        name for name, p in plain.named_parameters() if p.dim() == 4 and "gain" not in name
    ]
    assert torch.allclose(plain(x), output, atol=1e-4)
    after = pp.verify(plain, PASSPORT, claim)
    assert after.same_weights is False
    if private is not None and after.accepted:
        twin = copy.deepcopy(plain)
        pp.passportize(twin, PASSPORT, example_inputs=x)
        with pp.branch(twin, "private"), torch.no_grad():
            assert torch.allclose(twin(x), private, atol=1e-3)
    return before.matched, after.matched, before.total


@pytest.mark.parametrize("preset", list(CASES))
def test_the_attack_moves_no_bit(preset: str) -> None:
    before, after, total = matched_after_shift(preset)
    assert before == after == total == 128


@pytest.mark.parametrize("preset", list(CASES))
def test_without_centring_it_erases_the_signature(
    preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_modules, "STANDARDISED_CONVOLUTIONS", set())
    model = CASES[preset]()
    planned = pp.plan(model, config=config_of(preset), example_inputs=batch()[0])
    assert not any(part.centred for s in planned.sites if s.anchor for part in s.anchor.parts)
    # The attack still has to know what it may shift.
    monkeypatch.setattr(row_shift, "standardises_weight", lambda m: isinstance(m, nn.Conv2d))
    before, after, total = matched_after_shift(preset)
    assert before == total == 128
    # Far from the 64 bits of strength that are asked for.
    assert after < 0.8 * total


def test_rows_are_read_less_the_mean_of_their_kernel() -> None:
    weight = torch.randn(6, 4, 3, 3, requires_grad=True)
    centred = (weight - weight.mean((1, 2, 3), keepdim=True)).detach()
    for axis, channels in (("output", 6), ("input", 8)):
        part = AnchorPart("w", channels, axis, groups=2, centred=True)
        plain = AnchorPart("w", channels, axis, groups=2)
        assert torch.equal(anchor_rows(weight, part), anchor_rows(centred, plain))
    rows = anchor_rows(weight, AnchorPart("w", 6, centred=True))
    rows.square()[:, :5].sum().backward()
    assert weight.grad is not None and bool(weight.grad.any())
    assert torch.allclose(weight.grad.sum((1, 2, 3)), torch.zeros(6), atol=1e-6)
    assert anchor_rows(weight.bfloat16(), AnchorPart("w", 6, centred=True)).dtype == torch.float32


def test_only_the_very_classes_are_centred() -> None:
    class Subclass(StdConv2d):
        pass

    model = nn.Sequential(StdConv2d(3, 8, 3), Subclass(8, 8, 3), nn.Conv2d(8, 8, 3))
    planned = pp.plan(model, config=pp.PassportConfig.signature())
    assert [s.anchor.parts[0].centred for s in planned.sites if s.anchor] == [True, False, False]
    record = AnchorPart("w", 8, centred=True).to_dict()
    assert record["centred"] is True
    assert AnchorPart.from_dict(record) == AnchorPart("w", 8, centred=True)
    assert "centred" not in AnchorPart("w", 8).to_dict()


@pytest.mark.parametrize("preset", list(CASES))
def test_timm_models(preset: str) -> None:
    torch.manual_seed(0)
    if preset == "signature":
        model: nn.Module = timm.create_model("nf_regnet_b0", num_classes=5)
    else:  # as in BiT
        model = ResNetV2((2, 2), channels=(128, 256), num_classes=5)
    model.eval()
    x = torch.randn(2, 3, 64, 64)
    assert_round_trip(model, PASSPORT, x, config=config_of(preset))
    with torch.no_grad():
        output = model(x)
        done = shift_standardised_kernels(model, torch.Generator().manual_seed(0))
        assert len(done) > 10
        assert torch.allclose(model(x), output, rtol=1e-3, atol=1e-4)


def test_wrong_arguments_and_models_without_such_layers() -> None:
    with pytest.raises(InvalidArgument, match="size"):
        shift_standardised_kernels(with_norms(), size=-1.0)
    assert shift_standardised_kernels(nn.Sequential(nn.Conv2d(3, 4, 3))) == []
