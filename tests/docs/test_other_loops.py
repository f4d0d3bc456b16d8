"""The edits of docs/other_loops.md: they apply to the lines they name, and the result is Python."""

from __future__ import annotations

import ast

import pytest

from tools.other_loops import PAGE, edited, edits_of

NAMES = ("torchvision", "mmengine", "PyTorch Geometric")


def original(edits: list[list[str]]) -> list[str]:
    """What a script has to hold for the edits, with something else between."""
    lines = []
    for edit in edits:
        lines += ["# between", *(line[1:] for line in edit if line[:1] in " -")]
    return lines


@pytest.mark.parametrize("name", NAMES)
def test_edits_apply_and_leave_the_rest(name: str) -> None:
    edits = edits_of(name, PAGE.read_text(encoding="utf-8"))
    assert len(edits) >= 3 and all(any(line[0] == "+" for line in edit) for edit in edits)
    found = edited("\n".join(original(edits)), edits).splitlines()
    wanted = []
    for edit in edits:
        wanted += ["# between", *(line[1:] for line in edit if line[:1] in " +")]
        added = [line[1:] for line in edit if line[0] == "+"]
        indent = min(len(line) - len(line.lstrip()) for line in added)
        block = "\n".join(line[indent:] for line in added)
        ast.parse(f"def step():\n{_indented(block)}")
    assert found == wanted
    text = "\n".join(found)
    assert "passportize(" in text and "embed_signature(" in text and "save_claim(" in text
    assert "JointCriterion(" in text or "joint_loss(" in text


def _indented(block: str) -> str:
    return "\n".join(f"    {line}" for line in block.splitlines())


def test_a_line_that_is_gone_or_there_twice_is_named() -> None:
    edits = edits_of("torchvision", PAGE.read_text(encoding="utf-8"))
    lines = original(edits)
    for wrong, count in ((lines[:-1], 0), ([*lines, lines[-1]], 2)):
        with pytest.raises(
            ValueError, match=f"{count} places, not one, for the edit of 'total_time"
        ):
            edited("\n".join(wrong), edits)
    with pytest.raises(ValueError, match="no edits"):
        edits_of("keras", PAGE.read_text(encoding="utf-8"))
