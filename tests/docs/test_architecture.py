"""The map names files that are there, every room, and every word once."""

from __future__ import annotations

import json
import re
from collections import Counter

from tests.support import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_files_are_there():
    named = set(re.findall(r"`([a-z_]+(?:/[a-z_]+)*\.py)`", PAGE))
    assert len(named) > 40
    assert not [name for name in named if not (ROOT / "passportize" / name).is_file()]


def test_every_room_is_named_with_a_file_to_begin_with():
    floors = json.loads((ROOT / "docs/pictures/rooms.json").read_text(encoding="utf-8"))["floors"]
    table = PAGE.partition("| room | read first |")[2].partition("\n\n")[0]
    first_column = "".join(row.split("|")[1] for row in table.strip().splitlines()[1:])
    rooms = {name for floor in floors[:-2] for name in floor}
    assert set(re.findall(r"`(\w+)`", first_column)) == rooms


def test_a_word_stands_in_the_glossary_once():
    glossary = PAGE.partition("## Glossary")[2]
    words = [
        word.strip()
        for words in re.findall(r"^\| ([^|]+) \| [^|]+ \|$", glossary, flags=re.MULTILINE)
        for word in words.split(",")
        if words != "word"
    ]
    assert len(words) > 90
    assert not [word for word, count in Counter(words).items() if count > 1]
