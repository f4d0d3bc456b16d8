"""Where the boxes of the picture of the rooms stand, and where its arrows run."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

Rooms = dict[str, Any]
"""``floors``: names from the top down; ``rooms``: what each is for; ``walls``: what a contract says
of some rooms; ``arrows``: which rooms each one imports."""
Places = dict[str, tuple[int, int]]
"""Left and top of the box of each room, in pixels."""
Line = tuple[int, int, int, int]
"""Left and top of the foot of an arrow, and of its head."""

WIDTH, MARGIN = 1000, 20
BOX, HEIGHT, RISE = 225, 70, 102
HALF = 245 // 2
SLOTS = 7
"""Half a box apart, so that a floor holds four boxes and a single one can stand aside."""
TOP = 68
CELLAR = 2
"""The lowest floors, which every room may use."""
GAP = 24
TRIES = 40


def essential_arrows(rooms: Rooms) -> list[tuple[str, str]]:
    """Arrows that say something new: there is no longer way down between the same two rooms.

    Those into the cellar are left out as well, since every room stands on it.
    """
    arrows = rooms["arrows"]
    cellar = {name for floor in rooms["floors"][-CELLAR:] for name in floor}

    def below(room: str) -> set[str]:
        return set(arrows[room]).union(*(below(other) for other in arrows[room]))

    reached = {room: below(room) for room in arrows}
    return [
        (room, other)
        for room, others in arrows.items()
        for other in others
        if other not in cellar and not any(other in reached[way] for way in others)
    ]


def place_boxes(rooms: Rooms) -> Places:
    """Places in which few arrows cross each other and none runs through a box.

    Floor by floor every way to place its rooms is tried until none is better; then three floors
    are shuffled and it starts again from there, from a fixed seed.
    """
    floors, arrows = rooms["floors"], essential_arrows(rooms)
    upper = floors[:-CELLAR]
    choices = [list(_ways(floor)) for floor in upper]
    random = Random(0)
    best = [random.choice(options) for options in choices]
    least = sys.maxsize
    for _ in range(TRIES):
        picked = list(best)
        for level in random.sample(range(len(upper)), 3):
            picked[level] = random.choice(choices[level])
        cost, changed = sys.maxsize, True
        while changed:
            changed = False
            for level, options in enumerate(choices):
                for option in options:
                    tried = [*picked[:level], option, *picked[level + 1 :]]
                    price = _cost(_places(upper, tried), arrows)
                    if price < cost:
                        picked, cost, changed = tried, price, True
        if cost < least:
            best, least = picked, cost
    below = [{name: 2 * place for place, name in enumerate(floor)} for floor in floors[-CELLAR:]]
    cellar = _places(floors[-CELLAR:], below, TOP + RISE * len(upper) + GAP)
    return {**_places(upper, best), **cellar}


def _ways(floor: Sequence[str]) -> Iterator[dict[str, int]]:
    """All ways to put the rooms of a floor into slots without overlap."""
    for slots in itertools.permutations(range(SLOTS), len(floor)):
        if all(abs(a - b) > 1 for a, b in itertools.combinations(slots, 2)):
            yield dict(zip(floor, slots, strict=True))


def _places(
    floors: Sequence[Sequence[str]], picked: Sequence[dict[str, int]], top: int = TOP
) -> Places:
    return {
        name: (MARGIN + HALF * picked[level][name], top + RISE * level)
        for level, floor in enumerate(floors)
        for name in floor
    }


def arrow_lines(places: Places, arrows: Sequence[tuple[str, str]]) -> list[Line]:
    """Foot and head of every arrow; those of one box are spread along its edge, left to right."""
    feet: dict[str, list[str]] = {name: [] for name in places}
    heads: dict[str, list[str]] = {name: [] for name in places}
    for one, other in sorted(arrows, key=lambda arrow: places[arrow[1]]):
        feet[one].append(other)
    for one, other in sorted(arrows, key=lambda arrow: places[arrow[0]]):
        heads[other].append(one)
    return [
        (
            places[one][0] + _port(feet[one].index(other), len(feet[one])),
            places[one][1] + HEIGHT,
            places[other][0] + _port(heads[other].index(one), len(heads[other])),
            places[other][1] - 1,
        )
        for one, other in arrows
    ]


def _port(index: int, count: int) -> int:
    return BOX // 2 + (2 * index - count + 1) * 13


def _cost(places: Places, arrows: Sequence[tuple[str, str]]) -> int:
    lines = arrow_lines(places, arrows)
    cost = sum(abs(line[0] - line[2]) for line in lines)
    cost += sum(abs(left + BOX // 2 - WIDTH // 2) // 8 for left, _ in places.values())
    for line in lines:
        for left, top in places.values():
            if line[1] < top + HEIGHT // 2 < line[3] and any(
                left - 6 < _along(line, y) < left + BOX + 6 for y in range(top, top + HEIGHT, 12)
            ):
                cost += 4000
    for one, two in itertools.combinations(lines, 2):
        low, high = max(one[1], two[1]), min(one[3], two[3])
        if low < high:
            sides = [_along(one, y) - _along(two, y) for y in (low, high)]
            cost += 700 * (sides[0] * sides[1] < 0)
    return cost


def _along(line: Line, y: int) -> int:
    """Where the curve of an arrow is at a height: an S between two verticals."""
    x0, y0, x1, y1 = line
    part, whole = min(max(y - y0, 0), y1 - y0), y1 - y0
    return x0 + (x1 - x0) * part * part * (3 * whole - 2 * part) // whole**3
