"""Convolutions by a mixture of kernels (CondConv) as anchors: the rows of all experts together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import passportize as pp
from passportize.errors import AnchorNotFound
from passportize.layers.model import switch_of
from passportize.release.claim_file import read_claim
from passportize.signature.rows import anchor_fan_in, anchor_rows, anchor_width
from passportize.signature.site import AnchorPart, Role, Site
from tests.support.round_trip import assert_round_trip

PASSPORT = pp.Passport.generate(owner="Mixtures", date="2026-11-28", secret=bytes(range(32)))
EXPERTS, SHAPE = 3, (8, 2, 3, 3)


class Mixture(nn.Module):
    """As in timm.layers: flattened kernels, mixed for every sample."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.in_channels, self.out_channels = SHAPE[1] * groups, SHAPE[0]
        self.kernel_size, self.groups, self.weight_shape = SHAPE[2:], groups, SHAPE
        self.weight = nn.Parameter(torch.randn(EXPERTS, 144) / 10)

    def forward(self, x: Tensor, routing: Tensor) -> Tensor:
        kernels = (routing @ self.weight).view(-1, *SHAPE[1:])
        groups = self.groups * len(x)
        y = F.conv2d(x.reshape(1, -1, *x.shape[2:]), kernels, padding=1, groups=groups)
        return y.view(len(x), SHAPE[0], *x.shape[2:])


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.mixture = Mixture(groups=2)
        self.norm = nn.BatchNorm2d(8)
        self.router = nn.Linear(4, EXPERTS)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.norm(self.mixture(x, self.router(x.mean((2, 3))).sigmoid()))
        return cast(Tensor, self.head(x.relu().mean((2, 3))))


def small() -> Small:
    torch.manual_seed(0)
    return Small()


def mixture_site(model: nn.Module, **options: object) -> Site:
    return next(s for s in pp.plan(model, **options).sites if s.name == "norm")  # type: ignore[arg-type]


@pytest.mark.parametrize(("axis", "groups"), [("output", 1), ("output", 4), ("input", 2)])
def test_rows_of_all_experts_lie_side_by_side(axis: str, groups: int) -> None:
    weight = torch.arange(EXPERTS * 144.0).view(EXPERTS, 144)
    channels = 8 if axis == "output" else 2 * groups
    part = AnchorPart("w", channels, axis, groups=groups, expert_shape=SHAPE)
    assert anchor_width(weight.shape, part) == channels
    single = AnchorPart("w", channels, axis, groups=groups)
    rows = anchor_rows(weight, part)
    assert rows.shape == (channels, anchor_fan_in(weight.shape, part))
    expected = [anchor_rows(kernel.view(SHAPE), single) for kernel in weight]
    assert torch.equal(rows, torch.cat(expected, dim=1))


def test_a_weight_of_another_shape_is_refused() -> None:
    part = AnchorPart("w", 8, expert_shape=SHAPE)
    for shape in ((EXPERTS, 145), (EXPERTS, 8, 18), (144,)):
        with pytest.raises(AnchorNotFound, match="another model"):
            anchor_rows(torch.zeros(shape), part)


def test_a_part_without_experts_is_described_as_before() -> None:
    record = AnchorPart("w", 8).to_dict()
    assert sorted(record) == [
        "axis", "channels", "groups", "repeats", "start", "transposed", "weight",
    ]  # fmt: skip
    part = AnchorPart("w", 8, expert_shape=SHAPE)
    assert part.to_dict()["expert_shape"] == list(SHAPE)
    assert AnchorPart.from_dict(part.to_dict()) == part


def test_however_the_model_is_read_the_anchor_is_the_same() -> None:
    model = small()
    x = torch.randn(2, 3, 8, 8)
    found = mixture_site(model, example_inputs=x).anchor
    assert found is not None and found.rule == "upstream"
    assert found.parts == (AnchorPart("mixture.weight", 8, groups=2, expert_shape=SHAPE),)
    assert not pp.plan(model, example_inputs=x).notes  # the autograd graph says the same
    named = mixture_site(model, example_inputs=x, anchors={"norm": "mixture.weight"}).anchor
    assert named is not None and named.parts == found.parts


def test_bits_are_trained_in_claimed_and_read_back(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = small()
    x, y = torch.randn(16, 3, 8, 8), torch.arange(16) % 5
    config = pp.PassportConfig.signature(sign_every=1)
    pp.passportize(model, PASSPORT, config=config, example_inputs=x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(60):
        optimizer.zero_grad()
        pp.joint_loss(model, x, y, F.cross_entropy).total.backward()
        optimizer.step()
    assert pp.signature_accuracy(model) == 1.0
    path = tmp_path / "mixture.claim.safetensors"
    claim = pp.save_claim(model, path)
    read = read_claim(path)
    assert read.sites == claim.sites and read.digest() == claim.digest()
    verdict = pp.verify(pp.unpassportize(model), PASSPORT, path)
    assert verdict.matched == verdict.total == 8


def test_a_signature_without_norms() -> None:
    class NormFree(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixture, self.router = Mixture(), nn.Linear(2, EXPERTS)

        def forward(self, x: Tensor) -> Tensor:
            return cast(Tensor, self.mixture(x, self.router(x.mean((2, 3))).sigmoid()))

    config = pp.PassportConfig.signature()
    sites = pp.plan(NormFree(), config=config, where="mixture").sites
    assert [(site.name, site.bits, site.fan_in) for site in sites if site.bits] == [
        ("mixture", 8, 54)
    ]
    layers = assert_round_trip(NormFree(), PASSPORT, torch.randn(2, 2, 8, 8), config=config)
    assert len(layers) == 1  # rows of two entries, as the router's, carry no bits


@pytest.fixture(scope="module")
def conditional() -> Iterator[nn.Module]:
    torch.manual_seed(0)
    yield timm.create_model("efficientnet_cc_b0_4e", num_classes=10)


def test_every_norm_of_timms_model_is_bound(conditional: nn.Module) -> None:
    planned = pp.plan(conditional)
    assert len(planned.role(Role.BOUND)) == len(planned.sites) == 49
    mixed = [s for s in planned.sites if s.anchor and s.anchor.parts[0].expert_shape]
    assert len(mixed) == 24
    assert all(site.anchor and site.anchor.rule == "upstream" for site in mixed)


def test_bits_rise_in_timms_model(conditional: nn.Module) -> None:
    pp.passportize(conditional, PASSPORT)
    optimizer = torch.optim.SGD(conditional.parameters(), lr=0.05, momentum=0.9)
    x, y = torch.randn(8, 3, 64, 64), torch.arange(8)
    before = pp.signature_accuracy(conditional)
    for _ in range(5):
        optimizer.zero_grad()
        loss = pp.joint_loss(conditional, x, y, F.cross_entropy)
        loss.total.backward()
        optimizer.step()
    assert bool(loss.total.isfinite())
    assert before < 0.55 and pp.signature_accuracy(conditional) > before + 0.1
    switch_of(conditional).saved = True
    pp.unpassportize(conditional)
