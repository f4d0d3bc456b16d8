"""The picture of the rooms shows the code as it is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tools import draw_rooms
from tools.room_places import essential_arrows


@pytest.fixture(scope="module")
def drawn() -> dict[str, Any]:
    rooms: dict[str, Any] = json.loads((draw_rooms.PICTURES / "rooms.json").read_text("utf-8"))
    return rooms


def test_the_data_are_those_of_the_code(drawn: dict[str, Any]) -> None:
    pytest.importorskip("grimp")
    committed = {name: value for name, value in drawn.items() if name != "places"}
    assert draw_rooms.read_rooms() == committed, "run `make picture` and commit what it writes"


def test_the_picture_is_that_of_the_data(drawn: dict[str, Any]) -> None:
    picture = (draw_rooms.PICTURES / "rooms.svg").read_text(encoding="utf-8")
    assert draw_rooms.draw(drawn) == picture, "run `make picture` and commit what it writes"


def test_arrows_run_down_and_a_missing_one_has_a_longer_way(drawn: dict[str, Any]) -> None:
    level = {name: at for at, floor in enumerate(drawn["floors"]) for name in floor}
    for room, others in drawn["arrows"].items():
        assert all(level[room] < level[other] for other in others)
    shown: dict[str, set[str]] = {name: set() for name in level}
    for room, other in essential_arrows(drawn):
        shown[room].add(other)
    cellar = {name for floor in drawn["floors"][-2:] for name in floor}
    for room, others in drawn["arrows"].items():
        reached, waiting = set(), [room]
        while waiting:
            further = shown[waiting.pop()] - reached
            reached |= further
            waiting += further
        assert set(others) - cellar <= reached
