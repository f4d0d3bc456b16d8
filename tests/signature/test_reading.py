"""Bits read from tensors: known answers, what is missing, and rows that are no numbers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import tests.support.independent_reader as independent
from passportize.passport.passport import Passport
from passportize.signature.formulations import NORMALISED, RAW
from passportize.signature.layout import Layout
from passportize.signature.model_key import ModelKey
from passportize.signature.reading import Reading, prepare_sites, read_signature, readable, rows_of
from passportize.signature.rows import anchor_rows
from passportize.signature.site import AnchorPart
from tests.signature.test_model_key import LAYOUT, PASSPORT, SHAPES, key_of, packed, records
from tests.support import ROOT
from tests.support.layouts import bound, layout_of, plain_layout

CLAIM_PAGE = ROOT / "docs" / "claim_format.md"


def formula_weights() -> dict[str, Tensor]:
    """Those of the known answers, exact in float32."""
    weights = {}
    for name, shape in SHAPES.items():
        entries = torch.arange(math.prod(shape))
        numbers = (entries * entries + 7 * entries) % 1009 - 504
        weights[name] = (numbers.float() / 512).reshape(shape)
    return weights


def read(layout: Layout, tensors: dict[str, Tensor], passport: Passport = PASSPORT) -> Reading:
    found = {name: name for name, shape in layout.weights.items() if name in tensors}
    return read_signature(ModelKey(passport, layout), layout, prepare_sites(layout, tensors, found))


def test_known_answers() -> None:
    reading = read(LAYOUT, formula_weights())
    text = CLAIM_PAGE.read_text()
    assert packed(reading.bits) == "179d1d30ace4ab64013bbfd2efd6ca36"
    assert f"`{packed(reading.bits)}`" in text
    assert reading.bits[-4:].tolist() == [1, 1, 0, 1] and "`1101`" in text
    assert (reading.matched, reading.total) == (184, 388) and "`184 of 388`" in text


def test_every_bit_is_that_of_the_independent_reader() -> None:
    weights, key, found = formula_weights(), key_of(PASSPORT, LAYOUT), []
    for site in records(LAYOUT):
        for number, part in enumerate(site["parts"]):
            values = weights[part["weight"]].flatten().tolist()
            rows = independent.rows(values, SHAPES[part["weight"]], part)
            found += independent.answers(key, site, number, part, rows)
    assert read(LAYOUT, weights).bits.tolist() == found


def test_bits_matches_and_confidence_belong_together() -> None:
    layout = layout_of(LAYOUT.sites, SHAPES, raw=["stem.bn"])
    weights, key = formula_weights(), ModelKey(PASSPORT, layout)
    reading = read(layout, weights)
    assert torch.equal(reading.expected, key.bits())
    assert reading.matched == int((reading.bits == reading.expected).sum())
    assert [(site.total, site.prepared.found_as) for site in reading.sites] == [
        (384, "layer1.0.conv1.weight"),
        (4, "stem.weight"),
    ]
    assert reading.sites[0].prepared.tensors == ("layer1.0.conv1.weight", "proj.weight")
    rows = [anchor_rows(weights[name], AnchorPart(name, SHAPES[name][0])) for name in SHAPES]
    first = NORMALISED.respond(rows[:2], key.sides(0))
    second = RAW.respond(rows[2:], key.sides(1))
    assert torch.equal(reading.confidence[:384], first.gamma.abs().double())
    assert torch.equal(reading.bits, torch.cat([first.gamma, second.gamma]).ge(0).to(torch.int8))
    expected = second.gamma.abs() / rows[2].norm(dim=1)
    torch.testing.assert_close(reading.confidence[384:], expected.double())


def test_missing_sites_are_not_counted_and_others_keep_their_places() -> None:
    weights = formula_weights()
    whole = read(LAYOUT, weights)
    del weights["proj.weight"]  # of two parts
    reading = read(LAYOUT, weights)
    assert reading.total == 4 and reading.sites[0].total == 0
    assert reading.bits[:384].tolist() == [0] * 384 == reading.confidence[:384].tolist()
    assert torch.equal(reading.bits[384:], whole.bits[384:])
    assert "no tensor stands for proj.weight (64, 300)" in reading.sites[0].prepared.note


def test_notes_say_why() -> None:
    tensors = {
        "layer1.0.conv1.weight": torch.zeros(2, 2),
        "stem.weight": torch.zeros(4, 10, dtype=torch.complex64),
    }
    first, second = prepare_sites(LAYOUT, tensors, {})
    assert first.note == "layer1.0.conv1.weight is of shape (2, 2), not (320, 3, 3, 3)"
    assert second.note == "stem.weight is complex, not (4, 10)"
    assert read(LAYOUT, {}).total == 0
    assert read(LAYOUT, {}).matched == 0


def test_only_the_shape_decides_what_is_readable() -> None:
    assert readable(torch.zeros(2, 3, dtype=torch.int8), (2, 3))
    assert not readable(torch.zeros(3, 2), (2, 3))
    assert not readable(torch.zeros(2, 3, dtype=torch.complex64), (2, 3))


@pytest.mark.parametrize(
    ("dtype", "read_as"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.int8, torch.float32),
        (torch.bool, torch.float32),
    ],
)
def test_all_types_are_read(dtype: torch.dtype, read_as: torch.dtype) -> None:
    weight = torch.randn(4, 9).mul(3).to(dtype)
    rows = rows_of(weight, AnchorPart("w", 4))
    assert rows.dtype == read_as
    assert torch.equal(rows, weight.to(read_as))


def test_a_graph_is_not_kept() -> None:
    weight = torch.randn(4, 9, requires_grad=True)
    assert not rows_of(weight, AnchorPart("w", 4)).requires_grad


ROWS = {
    "nan": torch.nan,
    "inf": torch.inf,
    "minus inf": -torch.inf,
    "zeros": 0.0,
    "largest": 3e38,
    "smallest": 1e-45,
}


@pytest.mark.parametrize("value", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("config", ["keyed", "paper"])
@pytest.mark.parametrize("special", [{}, {"centred": True}, {"less_mean_row": True}])
def test_no_row_of_whatever_numbers_raises(value, config, special) -> None:
    site = bound("bn", AnchorPart("w", 300, **special))
    layout = layout_of([site], {"w": (300, 20)}, raw=["bn"] if config == "paper" else [])
    torch.manual_seed(0)
    weight = torch.randn(300, 20)
    weight[::3] = value
    reading = read(layout, {"w": weight})
    assert reading.total == 300
    assert bool(torch.isfinite(reading.confidence).all())
    assert bool(((reading.bits == 0) | (reading.bits == 1)).all())
    assert abs(reading.matched - 150) < 5 * 9  # still coins
    if value == 0 and not special:
        assert bool((reading.bits[::3] == 1).all()) and not reading.confidence[::3].any()
    if value != value and not special:
        assert not reading.bits[::3].any() and not reading.confidence[::3].any()
    message = ModelKey(PASSPORT, layout).read_message(reading.bits, reading.confidence)
    assert message is None


def test_whole_models_of_no_numbers_are_coins() -> None:
    for value in ROWS.values():
        reading = read(plain_layout({"w": (400, 10)}), {"w": torch.full((400, 10), value)})
        assert reading.total == 400 and abs(reading.matched - 200) < 50


def test_rescaled_and_mirrored_rows_read_the_same() -> None:
    layout = plain_layout(SHAPES)
    weights = formula_weights()
    before = read(layout, weights)
    generator = torch.Generator().manual_seed(0)
    changed = {
        name: weight
        * 2.0
        ** torch.randint(-100, 100, (len(weight), *[1] * (weight.dim() - 1)), generator=generator)
        * -1
        for name, weight in weights.items()
    }
    assert torch.equal(read(layout, changed).bits, before.bits)


def test_prepared_sites_serve_many_keys() -> None:
    weights = formula_weights()
    prepared = prepare_sites(LAYOUT, weights, {name: name for name in weights})
    strangers = [
        Passport.generate("Mallory", date="2026-11-28", secret=bytes([n]) * 32)
        for n in range(1, 40)
    ]
    matched = []
    for passport in strangers:
        reading = read_signature(ModelKey(passport, LAYOUT), LAYOUT, prepared)
        assert reading.sites[0].prepared is prepared[0]
        matched.append(reading.matched)
    assert abs(sum(matched) / len(matched) - 194) < 4 * 9.85 / len(matched) ** 0.5
    renamed = replace(LAYOUT.sites[1], name="other")
    other = layout_of([LAYOUT.sites[0], renamed], SHAPES, raw=["other"])
    assert not torch.equal(read(other, weights).bits, read(LAYOUT, weights).bits)
