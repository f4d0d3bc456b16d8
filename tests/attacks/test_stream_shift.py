"""What is added to all channels before a LayerNorm is nothing, and moves no bit."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import timm
import torch
from torch import Tensor, nn

import passportize as pp
from passportize.attacks.stream_shift import shift_streams
from passportize.errors import InvalidArgument
from passportize.layers.model import switch_of
from passportize.release.claim import claim_of
from passportize.signature.rows import anchor_rows, row_positions
from passportize.signature.site import AnchorPart
from passportize.surgery import planning
from tests.support.round_trip import assert_round_trip

PASSPORT = pp.Passport.generate(owner="Stream", secret=bytes(range(32)))


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


@pytest.mark.parametrize("preset", ["keyed", "signature"])
def test_round_trip(preset: str) -> None:
    torch.manual_seed(0)
    config = getattr(pp.PassportConfig, preset)()
    assert_round_trip(Stream(), PASSPORT, batch(), config=config)


def test_bad_size() -> None:
    with pytest.raises(InvalidArgument, match="size"):
        shift_streams(Stream(), size=-1.0)
