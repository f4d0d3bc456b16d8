"""Draw the picture of the rooms from the code: ``python -m tools.draw_rooms`` (``make picture``).

The floors are those of the import contract in ``pyproject.toml``, the arrows are the imports that
grimp finds, and what a room is for is the first sentence of its docstring. Written are
``docs/pictures/rooms.json``, the data, and ``docs/pictures/rooms.svg``, drawn from them in whole
numbers, so that the same code gives the same bytes on every machine.
"""

from __future__ import annotations

import ast
import json
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from tools.room_places import (
    BOX,
    CELLAR,
    HEIGHT,
    MARGIN,
    WIDTH,
    Line,
    Rooms,
    arrow_lines,
    essential_arrows,
    place_boxes,
)

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "pictures"
PACKAGE = "passportize"


# --- the data --------------------------------------------------------------------------------


def read_rooms() -> Rooms:
    """Floors, rooms, walls and arrows, read from the code."""
    import tomllib

    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    contracts = contracts["importlinter"]["contracts"]
    layers = next(item["layers"] for item in contracts if item["type"] == "layers")
    floors = [[name.strip() for name in layer.split("|")] for layer in layers]
    names = [name for floor in floors for name in floor]
    walls = {
        item["name"]: [module.rpartition(".")[2] for module in item["source_modules"]]
        for item in contracts
        if item["type"] == "forbidden"
    }
    return {
        "floors": floors,
        "rooms": {name: _purpose(name) for name in names},
        "walls": walls,
        "arrows": _arrows(names),
    }


def _purpose(room: str) -> str:
    """First sentence of the docstring of a subpackage or module."""
    folder = ROOT / PACKAGE / room
    path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(docstring.partition("\n\n")[0].replace("``", "").split())
    return paragraph.partition(". ")[0].rstrip(".")


def _arrows(names: Sequence[str]) -> dict[str, list[str]]:
    import grimp

    sys.path.insert(0, str(ROOT))
    try:
        graph = grimp.build_graph(PACKAGE, exclude_type_checking_imports=True, cache_dir=None)
    finally:
        sys.path.remove(str(ROOT))
    found: dict[str, set[str]] = {name: set() for name in names}
    for module in graph.modules:
        here = [*module.split("."), ""][1]
        for imported in graph.find_modules_directly_imported_by(module) if here in found else ():
            there = [*imported.split("."), ""][1]
            if there in found and there != here:
                found[here].add(there)
    return {name: sorted(found[name], key=names.index) for name in names}


# --- the picture -----------------------------------------------------------------------------

INK, LINE, PAPER, GROUND = "#1f2933", "#5b6b7f", "#ffffff", "#eceff3"
PLAIN = ("#f6f9fd", "#a9b8c9")
FLAT = 46
"""Height of a box that is as wide as the picture."""
TINTS = (("#e3f4ec", "#4fa37f"), ("#fdf0dc", "#d29a3f"))
"""Fill and border of a room without a wall, and of those behind the first and the second one."""
FONT = "Helvetica, Arial, 'DejaVu Sans', sans-serif"


def draw(rooms: Rooms) -> str:
    """The picture as SVG text."""
    places = {name: (left, top) for name, (left, top) in rooms["places"].items()}
    cellar = places[rooms["floors"][-CELLAR][0]][1]
    height = max(top for _, top in places.values()) + FLAT + 70
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" font-family="{FONT}" fill="{INK}" role="img">',
        "<title>The rooms of passportize: every import runs down</title>",
        '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        f'orient="auto"><path d="M0 0.5 8 4 0 7.5z" fill="{LINE}"/></marker>',
        f'<rect width="{WIDTH}" height="{height}" fill="{PAPER}"/>',
        _text(MARGIN, 30, "Every import runs down", 19, "bold"),
        _text(MARGIN, 50, "No arrow is drawn where a longer way leads to the same room.", 12),
        _box(MARGIN - 12, cellar - 26, WIDTH - 16, height - cellar - 26, GROUND, GROUND),
        _text(MARGIN, cellar - 9, "What every room may use; arrows to here are not drawn.", 12),
    ]
    parts += map(_drawn_arrow, arrow_lines(places, essential_arrows(rooms)))
    for name, purpose in rooms["rooms"].items():
        wide = name in rooms["floors"][-1]
        parts += _drawn_room(name, purpose, places[name], _tint(rooms, name), wide)
    for number, (sentence, names) in enumerate(rooms["walls"].items()):
        x, y = MARGIN + number * (WIDTH // 2 - MARGIN), height - 32
        parts.append(_box(x, y, 16, 16, *TINTS[number]))
        parts.append(_text(x + 24, y + 13, f"{sentence} ({', '.join(names)})", 12))
    return "\n".join([*parts, "</svg>", ""])


def _tint(rooms: Rooms, name: str) -> tuple[str, str]:
    for names, tint in zip(rooms["walls"].values(), TINTS, strict=True):
        if name in names:
            return tint
    return PLAIN


def _drawn_arrow(line: Line) -> str:
    x0, y0, x1, y1 = line
    third = (y1 - y0) // 3
    return (
        f'<path d="M{x0} {y0}C{x0} {y0 + third} {x1} {y1 - third} {x1} {y1}" fill="none" '
        f'stroke="{LINE}" stroke-width="1.4" marker-end="url(#tip)"/>'
    )


def _drawn_room(
    name: str, purpose: str, place: tuple[int, int], tint: tuple[str, str], wide: bool
) -> Iterator[str]:
    x, y = place
    width, height = (WIDTH - 2 * MARGIN, FLAT) if wide else (BOX, HEIGHT)
    yield _box(x, y, width, height, *tint)
    yield _text(x + 12, y + 19, name, 15, "bold")
    for number, line in enumerate(textwrap.wrap(purpose, 120 if wide else 35)):
        yield _text(x + 12, y + 35 + 13 * number, line, 11)


def _box(x: int, y: int, width: int, height: int, fill: str, border: str) -> str:
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{fill}" '
        f'stroke="{border}"/>'
    )


def _text(x: int, y: int, text: str, size: int, weight: str = "normal") -> str:
    safe = text.replace("&", "&amp;").replace("<", "&lt;")
    return f'<text x="{x}" y="{y}" font-size="{size}" font-weight="{weight}">{safe}</text>'


def main() -> None:
    """Write both files."""
    rooms = read_rooms()
    rooms["places"] = place_boxes(rooms)
    PICTURES.mkdir(exist_ok=True)
    text = json.dumps(rooms, indent=1) + "\n"
    (PICTURES / "rooms.json").write_text(text, encoding="utf-8")
    (PICTURES / "rooms.svg").write_text(draw(rooms), encoding="utf-8")


if __name__ == "__main__":
    main()
