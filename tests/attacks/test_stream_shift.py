"""What is added to all channels before a LayerNorm is nothing, and moves no bit."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import passportize as pp
from passportize.attacks.stream_shift import shift_streams
from passportize.errors import InvalidArgument
from passportize.layers.model import switch_of
from passportize.release.claim import claim_of
from passportize.signature import evidence
from passportize.signature.evidence import read_by_name
from passportize.signature.factored_rows import without_mean_of_products
from passportize.signature.layout import Layout
from passportize.signature.matching import match_names
from passportize.signature.model_key import ModelKey
from passportize.signature.rows import anchor_rows, row_positions
from passportize.signature.site import Anchor, AnchorPart, Role, Site
from passportize.surgery import planning
from tests.support.round_trip import assert_round_trip

PASSPORT = pp.Passport.generate(owner="Stream", date="2026-11-28", secret=bytes(range(32)))


class Block(nn.Module):
    """A pre-norm residual block, with or without a factor for each channel."""

    def __init__(self, width: int, scaled: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.scale = nn.Parameter(0.5 + torch.rand(width)) if scaled else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(torch.relu(self.up(self.norm(x))))
        return x + (y if self.scale is None else y * self.scale)


class Stream(nn.Module):
    def __init__(self, scaled: bool = False) -> None:
        super().__init__()
        self.stem = nn.Linear(12, 32)
        self.blocks = nn.Sequential(Block(32, scaled), Block(32, scaled))
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.stem(x))).mean(1))


def batch() -> Tensor:
    return torch.randn(4, 5, 12, generator=torch.Generator().manual_seed(1))


def stream() -> tuple[nn.Module, Tensor | None]:
    return Stream(), batch()


def vit() -> tuple[nn.Module, Tensor | None]:
    return timm.create_model("test_vit"), None


CASES = {"stream": stream, "test_vit": vit}
WRITERS = {"stream": 3, "test_vit": 13}


def marked(case: str, preset: str = "signature") -> tuple[nn.Module, pp.Claim, Tensor | None]:
    torch.manual_seed(0)
    model, x = CASES[case]()
    config = getattr(pp.PassportConfig, preset)()
    pp.passportize(model.eval(), PASSPORT, config=config, example_inputs=x)
    done = pp.embed_signature(model)
    assert done.after == done.bits
    claim = claim_of(model)
    switch_of(model).saved = True
    return pp.unpassportize(model), claim, x


@pytest.mark.parametrize("case", CASES)
def test_the_attack_changes_no_output_and_no_bit(case: str) -> None:
    plain, claim, x = marked(case)
    probe = torch.randn(2, 3, 160, 160) if x is None else x
    with torch.no_grad():
        before = plain(probe)
        done = shift_streams(plain, torch.Generator().manual_seed(0), example_inputs=x)
        assert torch.allclose(plain(probe), before, rtol=1e-2, atol=1e-3)
    assert len(done) == WRITERS[case]
    verdict = pp.verify(plain, PASSPORT, claim)
    assert verdict.same_weights is False
    assert verdict.matched == verdict.total


@pytest.mark.parametrize("case", CASES)
def test_without_the_mean_it_erases_the_signature(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "read_less_mean_rows", lambda anchors, norms: anchors)
    plain, claim, x = marked(case)
    before = pp.verify(plain, PASSPORT, claim)
    assert before.matched == before.total
    assert shift_streams(plain, torch.Generator().manual_seed(0), size=50.0, example_inputs=x)
    after = pp.verify(plain, PASSPORT, claim)
    assert after.matched < 0.75 * after.total
    assert not after.accepted


def test_paper_reads_raw_rows_as_published() -> None:
    plain, claim, x = marked("stream", "paper")
    shift_streams(plain, torch.Generator().manual_seed(0), size=50.0, example_inputs=x)
    assert not pp.verify(plain, PASSPORT, claim).accepted


def test_the_private_branch_follows() -> None:
    torch.manual_seed(0)
    plain, x = Stream().eval(), batch()
    shifted = copy.deepcopy(plain)
    shift_streams(shifted, torch.Generator().manual_seed(0), example_inputs=x)
    outputs = []
    for model in (plain, shifted):
        pp.passportize(model, PASSPORT, example_inputs=x)
        with pp.branch(model, "private"), torch.no_grad():
            outputs.append(model(x))
    assert torch.allclose(*outputs, rtol=1e-3, atol=1e-4)


def flags(model: nn.Module, x: Tensor | None = None, preset: str = "keyed") -> dict[str, bool]:
    planned = pp.plan(model, config=getattr(pp.PassportConfig, preset)(), example_inputs=x)
    return {
        site.name: any(part.less_mean_row for part in site.anchor.parts)
        for site in planned.sites
        if site.anchor is not None
    }


def test_only_where_nothing_but_the_mean_is_taken() -> None:
    assert all(flags(Stream(), batch()).values())
    assert not any(flags(Stream(), batch(), "paper").values())
    # Behind a factor for each channel the vector would have to be another for each.
    assert flags(Stream(scaled=True), batch()) == {
        "blocks.0.norm": True,
        "blocks.1.norm": False,
        "norm": False,
    }
    nets = {
        "relu between": nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.LayerNorm(32)),
        "no mean": nn.Sequential(nn.Linear(12, 32), nn.RMSNorm(32)),
        "over positions too": nn.Sequential(nn.Linear(12, 32), nn.LayerNorm((5, 32))),
        "few channels": nn.Sequential(nn.Linear(12, 4), nn.LayerNorm(4)),
    }
    for reason, net in nets.items():
        assert not any(flags(net, batch()).values()), reason
    assert not any(flags(timm.create_model("test_resnet")).values())
    assert all(flags(timm.create_model("test_vit")).values())


class Unread(Stream):
    """The same with a branch on what a layer computes, which no trace can follow."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if float(x.sum()) > 1e9:
            x = -x
        return self.head(self.norm(self.blocks(x)).mean(1))


def test_where_the_autograd_graph_has_to_do() -> None:
    planned = pp.plan(Unread(), example_inputs=batch())
    assert planned.method == "autograd"
    assert all(flags(Unread(), batch()).values())
    assert flags(Unread(scaled=True), batch()) == flags(Stream(scaled=True), batch())


def test_rows_less_their_mean() -> None:
    weight = torch.randn(24, 6, requires_grad=True)
    for part in (AnchorPart("w", 24), AnchorPart("w", 8, start=8), AnchorPart("w", 8, repeats=3)):
        plain = anchor_rows(weight, part)
        less = anchor_rows(weight, replace(part, less_mean_row=True))
        assert torch.allclose(less, plain - plain.mean(0))
        window = anchor_rows(weight, replace(part, less_mean_row=True), slice(1, 4))
        assert torch.allclose(window, less[:, 1:4])
    record = AnchorPart("w", 24, less_mean_row=True).to_dict()
    assert record["less_mean_row"] is True
    assert AnchorPart.from_dict(record) == AnchorPart("w", 24, less_mean_row=True)
    assert "less_mean_row" not in AnchorPart("w", 24).to_dict()
    positions = row_positions(weight, AnchorPart("w", 8, repeats=3, less_mean_row=True))
    whole = anchor_rows(weight, AnchorPart("w", 8, repeats=3))
    assert torch.equal(weight.reshape(-1)[positions], whole)


# --- behind a factor for each channel ------------------------------------------------------------


class BehindView(Block):
    """The factor in another shape, and first."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(torch.relu(self.up(self.norm(x))))
        return x + self.scale.view(1, 1, -1) * y


def scaled_stream() -> tuple[nn.Module, Tensor]:
    model = Stream(scaled=True)
    model.blocks.append(BehindView(32, scaled=True))
    return model, batch()


def scaled_vit() -> tuple[nn.Module, Tensor]:
    model = timm.create_model("test_vit", init_values=0.1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                # As after training: of both signs, few of them small.
                parameter.mul_(1 + 0.5 * torch.randn_like(parameter))
    return model, torch.randn(2, 3, 160, 160)


def marked_behind_factors(make: Callable[[], Any]) -> tuple[nn.Module, pp.Claim, Tensor]:
    torch.manual_seed(0)
    model, x = make()
    pp.passportize(model.eval(), PASSPORT, config=pp.PassportConfig.signature(), example_inputs=x)
    assert pp.embed_signature(model).after == claim_of(model).bits
    claim = claim_of(model)
    switch_of(model).saved = True
    return pp.unpassportize(model), claim, x


def factors_of(claim: pp.Claim) -> dict[str, str]:
    return {
        part.weight: part.factor
        for site in claim.sites
        for part in site.anchor.parts
        if part.factor
    }


@pytest.mark.parametrize("make", [scaled_stream, scaled_vit])
def test_behind_factors_each_row_gets_another_vector_and_is_read_all_the_same(
    make: Callable[[], Any],
) -> None:
    plain, claim, x = marked_behind_factors(make)
    factors = factors_of(claim)
    assert len(factors) == sum(name.endswith(("scale", "gamma")) for name in plain.state_dict())
    untouched = pp.verify(plain, PASSPORT, claim)
    assert (untouched.matched, untouched.matched_by) == (claim.bits, "name")
    # Five looks instead of four.
    assert untouched.log2_alternatives == math.log2(5)
    before = plain(x)
    with torch.no_grad():
        # Factors and rows may be multiplied against each other, with either sign, as well.
        for weight, factor in factors.items():
            rows, numbers = plain.get_parameter(weight), plain.get_parameter(factor)
            powers = torch.randint(-30, 30, numbers.shape).double().exp2()
            by = (powers * torch.where(torch.rand(numbers.shape) < 0.5, -1, 1)).to(rows.dtype)
            bias = plain.get_parameter(weight.replace("weight", "bias"))
            rows.mul_(by[:, None]), bias.mul_(by), numbers.div_(by)
        assert torch.allclose(plain(x), before, rtol=1e-3, atol=1e-4)
    # A shift is too small for float32 beside rows of another size, so it comes on top of one size.
    assert pp.verify(plain, PASSPORT, claim).matched == claim.bits
    plain, claim, x = marked_behind_factors(make)
    assert set(factors) <= set(
        shift_streams(plain, torch.Generator().manual_seed(0), size=50.0, example_inputs=x)
    )
    assert torch.allclose(plain(x), before, rtol=1e-2, atol=1e-3)
    verdict = pp.verify(plain, PASSPORT, claim)
    assert verdict.accepted and "less the mean" in verdict.matched_by
    assert verdict.matched >= 0.97 * claim.bits
    # What a stranger reads there is a coin.
    stranger = pp.Passport.generate(owner="Else", date="2026-11-28", secret=bytes(32))
    key = ModelKey(stranger, claim.layout)
    tensors = plain.state_dict()
    level = without_mean_of_products(claim.layout, tensors, match_names(claim.layout, tensors))
    read = read_by_name(level, key, claim.layout)
    assert abs(read.reading.matched / claim.bits - 0.5) < 3 * 0.5 / math.sqrt(claim.bits)


def test_read_as_they_lie_they_are_erased(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, claim, x = marked_behind_factors(scaled_stream)
    shift_streams(plain, torch.Generator().manual_seed(0), size=50.0, example_inputs=x)
    monkeypatch.setattr(evidence, "has_factors", lambda layout: False)
    assert pp.verify(plain, PASSPORT, claim).matched < 0.75 * claim.bits


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_suspect_with_its_factors_in_the_weights_or_under_another_name(prefix: str) -> None:
    plain, claim, x = marked_behind_factors(scaled_stream)
    shift_streams(plain, torch.Generator().manual_seed(0), size=50.0, example_inputs=x)
    state = {prefix + name: tensor.clone() for name, tensor in plain.state_dict().items()}
    renamed = pp.verify(state, PASSPORT, claim)
    for weight, factor in factors_of(claim).items():
        state[prefix + weight] *= state.pop(prefix + factor)[:, None]
    folded = pp.verify(state, PASSPORT, claim)
    assert folded.accepted and folded.matched == renamed.matched


def test_the_mean_of_products_by_a_second_calculation() -> None:
    rows, factors = torch.randn(6, 9), torch.tensor([0.5, -2.0, 1e-3, 0.0, 3.0, 1.0])
    part = AnchorPart("a.weight", 6, factor="a.scale")
    shape = {"a.weight": (6, 9)}
    site = Site("n", "N", Role.BOUND, 6, anchor=Anchor((part,), "upstream"))
    layout = Layout.of([site], [pp.PassportConfig.signature()], shape)
    tensors = {"a.weight": rows, "a.scale": factors}
    found = without_mean_of_products(layout, tensors, {"a.weight": "a.weight"})["a.weight"]
    product = factors.double()[:, None] * rows.double()
    expected = product - product.mean(0)
    for index, factor in enumerate(factors.double()):
        wanted = rows[index].double() if factor == 0 else expected[index] / factor
        torch.testing.assert_close(found[index].double(), wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(tensors["a.weight"], rows)


def test_only_a_factor_of_one_number_for_each_channel_before_a_norm_that_takes_the_mean() -> None:
    class Doubled(Block):
        def forward(self, x: Tensor) -> Tensor:
            return x + self.down(self.up(self.norm(x))) * self.scale * self.scale

    class Data(Block):
        def forward(self, x: Tensor) -> Tensor:
            return x + self.down(self.up(self.norm(x))) * torch.sigmoid(x)

    for kind in (Doubled, Data):
        model = Stream()
        model.blocks.append(kind(32, scaled=True))
        planned = pp.plan(model, example_inputs=batch())
        assert not any(part.factor for site in planned.sites for part in site.anchor.parts)
    rms = Stream(scaled=True)
    rms.norm = nn.RMSNorm(32)
    planned = {site.name: site for site in pp.plan(rms, example_inputs=batch()).sites}
    assert not planned["norm"].anchor.parts[0].factor
    assert planned["blocks.1.norm"].anchor.parts[0].factor == "blocks.0.scale"
    paper = pp.plan(Stream(scaled=True), config=pp.PassportConfig.paper(), example_inputs=batch())
    assert not any(part.factor for site in paper.sites for part in site.anchor.parts)


@pytest.mark.parametrize("preset", ["keyed", "signature"])
def test_round_trip(preset: str) -> None:
    torch.manual_seed(0)
    config = getattr(pp.PassportConfig, preset)()
    assert_round_trip(Stream(), PASSPORT, batch(), config=config)


def test_bad_size() -> None:
    with pytest.raises(InvalidArgument, match="size"):
        shift_streams(Stream(), size=-1.0)
