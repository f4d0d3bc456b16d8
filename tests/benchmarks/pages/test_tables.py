"""docs/results.md and the table in README.md are what the committed results say."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.pages import tables
from benchmarks.pages.headline import headline
from benchmarks.pages.markdown import table, wrapped

RECORDS = tables.results()


def test_both_are_up_to_date() -> None:
    for path, text in tables.pages().items():
        assert path.read_text() == text, f"{path.name}: run python -m benchmarks.pages.tables"


def test_check_tells_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "README.md"
    monkeypatch.setattr(tables, "README", copy)
    monkeypatch.setattr(sys, "argv", ["tables", "--check"])
    current = (tables.ROOT / "README.md").read_text()
    stale = current.replace(tables.BEGIN, f"{tables.BEGIN}\nstale text")
    for text, status in ((current, 0), (stale, 1)):
        copy.write_text(text)
        assert tables.main() == status
        assert copy.read_text() == text


def test_only_what_is_between_the_marks_is_written() -> None:
    text = f"before\n{tables.BEGIN}\nstale text\n{tables.END}\nbehind\n"
    written = tables.readme(text, RECORDS)
    assert written.startswith(f"before\n{tables.BEGIN}\n")
    assert written.endswith(f"\n{tables.END}\nbehind\n")
    assert "stale text" not in written
    assert tables.readme(written, RECORDS) == written


@pytest.mark.parametrize("text", ["", tables.BEGIN, tables.END + tables.BEGIN])
def test_a_page_without_marks_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="results:end"):
        tables.readme(text, RECORDS)


def test_a_refused_proof_is_bold() -> None:
    signs = next(line for line in headline(RECORDS).splitlines() if "sign flips" in line)
    paper = next(row for row in RECORDS["protection"]["rows"] if row["preset"] == "paper")
    left = paper["removal"]["sign flips"]
    assert not left["accepted"] and signs.endswith(f"| **{left['matched']}** |")
    assert signs.count("**") == 2


def test_markdown() -> None:
    assert table(["a", ""], [[1, "b"], [2.5, ""]]) == "| a |  |\n|---|---|\n| 1 | b |\n| 2.5 |  |"
    link = "[a-name](" + "x" * 150 + ")"
    assert wrapped(f"see {link} for more").splitlines() == ["see", link, "for more"]
