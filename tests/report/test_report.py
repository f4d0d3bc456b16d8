"""Reports: self-contained, complete, safe to open, the same for the same numbers."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

from passportize.errors import InvalidArgument, PassportizeError
from passportize.passport.message import OwnerMessage
from passportize.report import plots as report_plots
from passportize.report.page import render_report, write_report
from passportize.report.sections import Section, Strangers
from passportize.signature.reading import Reading
from passportize.verification.verdict import SiteVerdict, Verdict

VERDICT = Verdict(
    accepted=True,
    reason="the weights carry the signature (300 of 304 bits)",
    matched=300,
    total=304,
    log2_p=-275.5,
    log2_alternatives=0.0,
    strength=275.5,
    sites=(
        SiteVerdict("layer1.bn", "layer1.conv.weight", 252, 256),
        SiteVerdict("layer2.bn", "layer2.conv.weight", 48, 48),
        SiteVerdict("layer3.bn", "", 0, 0, "no tensor stands for layer3.conv.weight"),
    ),
    matched_by="name",
    message=OwnerMessage("Acme <b>&</b> Sons", "law@acme.example", "2026-01-31"),
    public_accuracy=97.25,
    private_accuracy=96.5,
    fidelity=True,
    fidelity_reason="the private branch is 0.8 points below the public one; 5 below are allowed",
    same_weights=False,
    claim="ab" * 32,
    notes=("1 of 3 sites are missing and not counted",),
)
READING = Reading(
    sites=(),
    bits=torch.tensor([0, 1] * 152, dtype=torch.int8),
    expected=torch.tensor([0, 1] * 152, dtype=torch.int8),
    confidence=torch.linspace(0.0, 9.0, 304, dtype=torch.float64),
)
STRANGERS = Strangers([0.0, 0.5, 1.0, 2.0, 7.0, 0.2], {"6 strangers": [9.0, 10.0, 12.5]}, 10.0)


class Links(HTMLParser):
    """Everything a page would load, and every element in it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.elements: list[str] = []
        self.alternatives: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "action", "poster", "background"):
                self.sources.append(value or "")
            if name == "alt":
                self.alternatives.append(value or "")


@pytest.fixture(scope="module")
def page():
    return render_report(VERDICT, reading=READING, strangers=STRANGERS)


def test_nothing_is_loaded_from_anywhere(page):
    links = Links(page)
    assert not {"script", "iframe", "object", "embed", "link", "form"} & set(links.elements)
    assert links.sources and all(source.startswith("data:image/svg") for source in links.sources)
    assert not re.search(r"@import|url\(|https?://", page)


def test_numbers_and_names_are_there(page):
    for text in (
        "300 / 304",
        "2^-275.5",
        "97.2 %",
        "96.5 %",
        "Accepted",
        "layer1.bn",
        "252 / 256",
        "missing",
        "law@acme.example",
        "ab" * 32,
        "1 of 3 sites are missing",
        "12.5 %",
        "highest strength that one of them reached is 7.0 bits",
    ):
        assert text in page, text


def test_text_is_escaped(page):
    assert "<b>" not in page and "Acme &lt;b&gt;&amp;&lt;/b&gt; Sons" in page


def test_every_picture_has_a_description(page):
    alternatives = Links(page).alternatives
    # The bits of the layers are bars of HTML, in words and numbers of their own.
    assert len(alternatives) == 3 and all(alternatives)


def test_the_same_numbers_give_the_same_page(page):
    assert render_report(VERDICT, reading=READING, strangers=STRANGERS) == page


@pytest.mark.parametrize(
    ("accepted", "word"), [(True, "Accepted"), (False, "Refused"), (None, "Could not judge")]
)
def test_any_verdict_can_be_reported(accepted, word):
    bare = replace(
        VERDICT,
        accepted=accepted,
        sites=(),
        matched=0,
        total=0,
        strength=0.0,
        message=None,
        public_accuracy=None,
        private_accuracy=None,
        fidelity=None,
        same_weights=None,
        claim="",
        notes=(),
    )
    page = render_report(bare)
    assert word in page and "not readable" in page and "<img" not in page


def test_further_parts_come_first():
    part = Section(
        "Training",
        "Text & more",
        ("a", "b"),
        [("1", "2")],
        report_plots.training_picture({"x": [3.0, 1.0], "y": [float("nan"), 0.0]}),
        "Losses",
    )
    page = render_report(VERDICT, before=[part])
    assert page.index("Text &amp; more") < page.index("Bits per layer")


def test_a_report_is_written_whole_or_not_at_all(tmp_path):
    path = write_report(tmp_path / "report.html", VERDICT, title="Whose?")
    assert "<h1>Whose?</h1>" in path.read_text(encoding="utf-8")
    with pytest.raises(PassportizeError, match="create the folder"):
        write_report(tmp_path / "missing" / "report.html", VERDICT)
    with pytest.raises(InvalidArgument, match="Verdict"):
        render_report("accepted")
