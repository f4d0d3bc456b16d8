"""So many rows of a model carry bits, which of them the key decides, and everything follows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

import passportize as pp
import tests.support.independent_reader as independent
from passportize.config import FORMULATIONS
from passportize.errors import ClaimFileError, InvalidArgument
from passportize.layers.model import passport_layers
from passportize.release.claim_file import write_claim
from passportize.signature.model_key import ModelKey
from passportize.signature.site import Role
from passportize.surgery.picking import shared_out

PASSPORT = pp.Passport.generate("Acme", date="2026-01-31", secret=bytes(range(32)))
OTHER = pp.Passport.generate("Acme", date="2026-01-31", secret=bytes(range(1, 33)))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 24, 3),
        nn.BatchNorm2d(24),
        nn.Conv2d(24, 40, 3),
        nn.BatchNorm2d(40),
        nn.Conv2d(40, 200, 1, groups=2),
        nn.BatchNorm2d(200),
        nn.Conv2d(200, 120, 1),
        nn.BatchNorm2d(120),
    )


def marked(bits: int, shortest_row: int = 64) -> nn.Module:
    config = pp.PassportConfig.signature(bits=bits, shortest_row=shortest_row)
    inputs = torch.zeros(2, 3, 12, 12)
    return pp.passportize(network(), PASSPORT, config=config, example_inputs=inputs)


@given(st.lists(st.integers(0, 500), min_size=1, max_size=12), st.integers(0, 3000))
def test_shares_add_up_and_none_is_too_large(sizes: list[int], total: int) -> None:
    shares = shared_out(total, sizes)
    assert sum(shares) == min(total, sum(sizes))
    assert all(0 <= share <= size for share, size in zip(shares, sizes, strict=True))
    if 0 < total < sum(sizes):
        exact = [total * size / sum(sizes) for size in sizes]
        assert all(abs(a - b) < 1 for a, b in zip(shares, exact, strict=True))


def test_short_rows_carry_none_and_the_plan_says_so() -> None:
    config = pp.PassportConfig.signature(bits=16)
    plan = pp.plan(network(), config=config, example_inputs=torch.zeros(2, 3, 12, 12))
    assert [site.bits for site in plan.sites] == [0, 4, 0, 12] and plan.bits == 16
    assert plan.sites[0].role is Role.SKIPPED and "27 entries" in plan.sites[0].reason
    assert "16 of 384 rows" in str(plan)
    more = pp.plan(
        network(),
        config=pp.PassportConfig.signature(bits=1000),
        example_inputs=torch.zeros(2, 3, 12, 12),
    )
    assert more.bits == 160 and "1000 were asked for" in str(more)
    few = pp.PassportConfig.signature(bits=1, shortest_row=8)
    plan = pp.plan(network(), config=few, example_inputs=torch.zeros(2, 3, 12, 12))
    assert plan.bits == 1
    assert sum("picked" in site.reason for site in plan.sites) == 3


def test_only_picked_rows_change_and_every_bit_is_read(tmp_path: Path) -> None:
    model = marked(90, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    done = pp.embed_signature(model)
    assert done.after == done.bits == 90
    changed = 0
    for layer in passport_layers(model).values():
        (part,) = layer.passport.site.anchor.parts
        (side,) = layer.passport.secret.sides
        rows = (model.get_parameter(part.weight) != before[part.weight]).flatten(1).any(1)
        assert set(rows.nonzero().flatten().tolist()) <= set(side.rows.tolist())
        assert len(side.rows) == part.picked == len(side.codes)
        changed += int(rows.sum())
    assert changed > 60
    claim = pp.save_claim(model, tmp_path / "claim")
    plain = pp.unpassportize(model)
    verdict = pp.verify(plain, PASSPORT, pp.load_claim(tmp_path / "claim"))
    assert (verdict.matched, verdict.total) == (90, 90) and 85 < verdict.strength < 90
    shuffled = {f"t{i}": value for i, value in enumerate(plain.state_dict().values())}
    verdict = pp.verify(shuffled, PASSPORT, claim)
    assert (verdict.matched, verdict.total) == (90, 90) and 64 < verdict.strength < 90
    # And a reader that was written from the description alone.
    save_file(plain.state_dict(), tmp_path / "weights")
    found, wanted = independent.read(
        (tmp_path / "claim").read_bytes(),
        (tmp_path / "weights").read_bytes(),
        bytes(range(32)),
        PASSPORT.message,
    )
    assert found == wanted and len(found) == 90


def test_a_claim_without_a_claim_file_is_read_from_the_plan() -> None:
    model = marked(120, 8)
    pp.embed_signature(model)
    config = pp.PassportConfig.signature(bits=120, shortest_row=8)
    plain, inputs = pp.unpassportize(model), torch.zeros(2, 3, 12, 12)
    verdict = pp.verify(plain, PASSPORT, config=config, example_inputs=inputs)
    assert verdict.accepted and verdict.matched == 120
    # Another number of bits is another key.
    other = pp.PassportConfig.signature(bits=119, shortest_row=8)
    verdict = pp.verify(plain, PASSPORT, config=other, example_inputs=inputs)
    assert not verdict.accepted and verdict.matched < 90


def test_the_key_picks_the_rows_and_every_choice_is_in_the_key() -> None:
    def rows(passport: pp.Passport, bits: int) -> list[list[int]]:
        config = pp.PassportConfig.signature(bits=bits)
        made = pp.passportize(timm.create_model("test_resnet"), passport, config=config)
        layout = made.bn1.passport.switch.layout
        key = ModelKey(passport, layout)
        return [
            side.rows.tolist() for index in range(len(layout.sites)) for side in key.sides(index)
        ]

    own, again = rows(PASSPORT, 60), rows(PASSPORT, 60)
    assert own == again and sum(map(len, own)) == 60
    assert own != rows(OTHER, 60)
    fewer = rows(PASSPORT, 59)
    # Not the same rows less one: all are drawn anew.
    assert sum(not set(b) <= set(a) for a, b in zip(own, fewer, strict=True)) > len(own) / 2


@pytest.mark.parametrize("formulation", [name for name in FORMULATIONS if name != "signature"])
def test_formulations_with_a_private_branch_need_every_row(formulation: str) -> None:
    with pytest.raises(InvalidArgument, match="private branch"):
        pp.PassportConfig.preset(formulation, bits=100)


@pytest.mark.parametrize("settings", [{"bits": 0}, {"bits": 1.5}, {"bits": True}])
def test_numbers_that_make_no_sense(settings: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument, match="whole number"):
        pp.PassportConfig.signature(**settings)


def test_it_counts_for_the_whole_model() -> None:
    with pytest.raises(InvalidArgument, match="whole model"):
        pp.passportize(
            network(),
            PASSPORT,
            config=pp.PassportConfig.signature(),
            overrides={"1": {"bits": 4}},
            example_inputs=torch.zeros(2, 3, 12, 12),
        )


@pytest.mark.parametrize(
    "change",
    [
        lambda part: dataclasses.replace(part, picked=part.channels + 1),
        lambda part: dataclasses.replace(part, picked=0),
    ],
)
def test_claims_with_impossible_numbers_are_refused(change, tmp_path: Path) -> None:
    model = marked(90, 8)
    claim = pp.save_claim(model, tmp_path / "claim")
    site = claim.sites[0]
    anchor = dataclasses.replace(site.anchor, parts=tuple(map(change, site.anchor.parts)))
    sites = (dataclasses.replace(site, anchor=anchor), *claim.sites[1:])
    crafted = dataclasses.replace(claim, marking=dataclasses.replace(claim.marking, sites=sites))
    write_claim(crafted, tmp_path / "crafted")
    with pytest.raises(ClaimFileError):
        pp.load_claim(tmp_path / "crafted")


def test_records_without_it_are_as_before() -> None:
    record = pp.PassportConfig.signature().to_dict()
    assert "bits" not in record and "shortest_row" not in record
    set_ = pp.PassportConfig.signature(bits=7)
    assert set_.to_dict()["bits"] == 7
    assert pp.PassportConfig.from_dict(set_.to_dict()) == set_
