"""What the digest of a layout covers."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import fields, replace

import pytest

import tests.support.independent_passport as independent
from passportize.signature.formulations import FORMULATIONS, NORMALISED, RAW
from passportize.signature.layout import Layout, anchor_of
from passportize.signature.site import Anchor, AnchorPart, Role, Site
from tests.support.layouts import KEYED, PAPER, bound, layout_of, plain_layout

SHAPES = {"conv1.weight": (8, 3, 3, 3), "conv2.weight": (4, 32, 3, 3), "fc.weight": (10, 4)}


def sites() -> list[Site]:
    return [
        bound("bn1", AnchorPart("conv1.weight", 6), AnchorPart("conv2.weight", 4)),
        bound("bn2", AnchorPart("fc.weight", 4, axis="input")),
    ]


def layout() -> Layout:
    return layout_of(sites(), SHAPES, raw=["bn2"])


def test_digest_is_that_of_the_text_in_the_description() -> None:
    text = (
        '["passportize/layout/v1",['
        '{"channels":10,"name":"bn1","parts":['
        '{"axis":"output","channels":6,"groups":1,"repeats":1,"start":0,"transposed":false,'
        '"weight":"conv1.weight"},'
        '{"axis":"output","channels":4,"groups":1,"repeats":1,"start":0,"transposed":false,'
        '"weight":"conv2.weight"}],"response":"normalised","shapes":[[8,3,3,3],[4,32,3,3]]},'
        '{"channels":4,"name":"bn2","parts":['
        '{"axis":"input","channels":4,"groups":1,"repeats":1,"start":0,"transposed":false,'
        '"weight":"fc.weight"}],"response":"raw","shapes":[[10,4]]}]]'
    )
    assert layout().digest() == hashlib.sha256(text.encode()).hexdigest()
    assert layout().digest() == independent.layout_digest(json.loads(text)[1])


def test_names_beyond_ascii_are_escaped() -> None:
    made = plain_layout({"é.weight": (2, 2)})
    part = {
        **{"axis": "output", "channels": 2, "groups": 1, "repeats": 1, "start": 0},
        **{"transposed": False, "weight": "é.weight"},
    }
    record = {"name": "norm_of_é.weight", "channels": 2, "response": "normalised", "parts": [part]}
    assert made.digest() == independent.layout_digest([{**record, "shapes": [[2, 2]]}])


CHANGES = {
    "weight": "conv3.weight",
    "channels": 5,
    "axis": "input",
    "start": 1,
    "repeats": 2,
    "groups": 2,
    "transposed": True,
    "expert_shape": (4, 2),
    "centred": True,
    "less_mean_row": True,
    "factor": "conv1.scale",
    "picked": 3,
}


def with_part(**changes: object) -> Layout:
    one, two = sites()
    part, *rest = anchor_of(one).parts
    parts = (replace(part, **changes), *rest)
    return layout_of(
        [replace(one, anchor=Anchor(parts, "user")), two],
        {**SHAPES, "conv3.weight": (8, 3, 3, 3)},
        raw=["bn2"],
    )


def test_every_field_of_a_part_enters() -> None:
    assert set(CHANGES) == {field.name for field in fields(AnchorPart)}
    digests = {with_part(**{name: value}).digest() for name, value in CHANGES.items()}
    assert len(digests | {layout().digest()}) == len(CHANGES) + 1
    defaults = {"expert_shape": (), "centred": False, "less_mean_row": False, "factor": ""}
    assert with_part(**defaults).digest() == layout().digest()


def test_names_responses_shapes_and_order_enter() -> None:
    one, two = sites()
    parts = anchor_of(one).parts
    split = [bound("bn1", parts[0]), bound("bn1b", parts[1]), two]
    others = [
        layout_of([two, one], SHAPES, raw=["bn2"]),
        layout_of([one], SHAPES),
        layout_of([one, two, replace(two, name="bn3")], SHAPES, raw=["bn2", "bn3"]),
        layout_of([replace(one, name="bn"), two], SHAPES, raw=["bn2"]),
        layout_of([one, two], SHAPES),
        layout_of([one, two], SHAPES, raw=["bn1"]),
        layout_of([bound("bn1", *parts[::-1]), two], SHAPES, raw=["bn2"]),
        layout_of(split, SHAPES, raw=["bn2"]),
        layout_of([one, two], {**SHAPES, "conv1.weight": (8, 3, 9)}, raw=["bn2"]),
        layout_of([replace(one, channels=9), two], SHAPES, raw=["bn2"]),
    ]
    assert len({each.digest() for each in [layout(), *others]}) == len(others) + 1


def test_what_decides_no_bit_does_not_enter() -> None:
    one, two = sites()
    told = replace(
        one,
        layer_type="other",
        aliases=("bn9",),
        reason="because",
        fan_in=99,
        channel_axis=1,
        anchor=Anchor(anchor_of(one).parts, "upstream", ("relu",)),
    )
    left_out = replace(two, name="bn0", role=Role.STATISTICS)
    again = Layout.of([left_out, told, two], [KEYED, replace(KEYED, margin=3.0), PAPER], SHAPES)
    assert again.digest() == layout().digest()


def test_what_is_to_be_known_of_a_layout() -> None:
    made = layout()
    assert made.bits == 14 and made.weights == SHAPES
    assert made.fan_in(0) == (27, 288) and made.fan_in(1) == (10,)
    assert [made.formulation(index) for index in range(2)] == [NORMALISED, RAW]
    assert set(made.responses) == set(FORMULATIONS) == {"normalised", "raw"}
    assert copy.deepcopy(made) == made
    with pytest.raises(KeyError):
        Layout.of(sites(), [KEYED, PAPER], {})
    with pytest.raises(ValueError, match="bn1 is not bound"):
        anchor_of(replace(sites()[0], anchor=None))
    empty = Layout.of([], [], {})
    assert empty.bits == 0 and empty.weights == {} and len(empty.digest()) == 64
