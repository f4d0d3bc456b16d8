"""Bars on a terminal: one after the other, and none where nobody looks."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from passportize.cli import terminal
from passportize.cli.terminal import counting, progress


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What is written to a terminal."""
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=80)
    monkeypatch.setattr(terminal, "errors", lambda: console)
    return written


def test_another_bar_may_follow_one_that_came_to_its_end(screen: io.StringIO) -> None:
    with counting("undoing disguises", False) as step:
        assert step is not None
        for done in range(1, 4):
            step(done, 3)
        assert list(progress([1, 2], "both branches", False)) == [1, 2]
    assert "undoing disguises" in screen.getvalue() and "both branches" in screen.getvalue()


def test_work_that_never_counts_shows_no_bar(screen: io.StringIO) -> None:
    with counting("undoing disguises", False):
        assert list(progress([1], "both branches", False)) == [1]
    assert "undoing disguises" not in screen.getvalue()


def test_a_bar_goes_with_an_exception(screen: io.StringIO) -> None:
    with pytest.raises(ValueError, match="no"), counting("undoing disguises", False) as step:
        assert step is not None
        step(1, 3)
        raise ValueError("no")
    # The console has no live display left.
    assert list(progress([1], "both branches", False)) == [1]


def test_json_has_no_bar(screen: io.StringIO) -> None:
    with counting("undoing disguises", True) as step:
        assert step is None
    assert screen.getvalue() == ""
