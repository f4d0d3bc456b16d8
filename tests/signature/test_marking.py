"""One record of what was marked."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from passportize.errors import InvalidArgument
from passportize.signature.layout import Layout
from passportize.signature.marking import Marking
from passportize.signature.site import AnchorPart, Role
from tests.support.layouts import KEYED, PAPER, bound

SHAPES = {"a.weight": (8, 3, 3, 3), "b.weight": (6, 72)}
SITES = (
    replace(bound("bn1", AnchorPart("a.weight", 8, centred=True)), aliases=("bn9",), fan_in=27),
    replace(bound("bn2"), role=Role.STATISTICS, channels=5, anchor=None, reason="left out"),
    bound("bn3", AnchorPart("b.weight", 6, expert_shape=(8, 9), less_mean_row=True)),
)
MARKING = Marking(KEYED, SITES, (KEYED, KEYED, PAPER), SHAPES)


def test_it_comes_back_from_json() -> None:
    text = json.dumps(MARKING.to_dict(), allow_nan=False)
    again = Marking.from_dict(json.loads(text))
    assert again == MARKING
    assert again.layout.digest() == MARKING.layout.digest()


def test_a_config_of_its_own_stands_with_its_site_alone() -> None:
    record = MARKING.to_dict()
    assert set(record) == {"config", "sites", "anchors"}
    assert [site["config"] for site in record["sites"]] == [None, None, PAPER.to_dict()]
    assert record["config"] == KEYED.to_dict()
    assert record["anchors"] == {"a.weight": [8, 3, 3, 3], "b.weight": [6, 72]}


def test_its_layout_and_bits_are_those_of_bound_sites() -> None:
    assert MARKING.bits == MARKING.layout.bits == 14
    assert MARKING.layout == Layout.of(SITES, (KEYED, KEYED, PAPER), SHAPES)
    assert [site.name for site in MARKING.layout.sites] == ["bn1", "bn3"]
    assert MARKING.layout.responses == ("normalised", "raw")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda record: record.pop("anchors"), KeyError),
        (lambda record: record["sites"][0].pop("config"), KeyError),
        (lambda record: record["sites"][0].update(role="owner"), ValueError),
        (lambda record: record["sites"][0].update(colour="blue"), TypeError),
        (lambda record: record["config"].update(margin=-1.0), InvalidArgument),
        (lambda record: record["config"].update(colour="blue"), InvalidArgument),
    ],
)
def test_records_of_others_are_none(change, error) -> None:
    record = json.loads(json.dumps(MARKING.to_dict()))
    change(record)
    with pytest.raises(error):
        Marking.from_dict(record)
