"""The README's pictures say what is so now."""

from __future__ import annotations

import re

import pytest

from tests.support import ROOT
from tools import badges

pytest.importorskip("rich")
from tools import terminal_picture


def test_badges_are_those_of_the_project() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    drawn = badges.draw(badges.facts(project))
    assert badges.PICTURE.read_text(encoding="utf-8") == drawn, "run `make pictures`"


def test_the_terminal_shows_the_plan_as_it_is() -> None:
    shown = re.sub(r"<[^>]*>", "", terminal_picture.PICTURE.read_text(encoding="utf-8"))
    shown = shown.replace("&#160;", " ")
    for line in terminal_picture.printed(terminal_picture.PLAN)[: terminal_picture.PLANNED]:
        assert line in shown, "run `make pictures`"
    assert "verdict:   ACCEPTED" in shown and "signature: 780 of 780 bits" in shown


@pytest.mark.parametrize("path", [badges.PICTURE, terminal_picture.PICTURE], ids=lambda p: p.stem)
def test_nothing_is_fetched_by_a_picture(path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "font-face" not in text and "href" not in text and "url(http" not in text
