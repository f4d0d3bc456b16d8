"""The badges of the README, one picture, from what pyproject.toml says.

    python -m tools.badges

Drawn here and not fetched, so that they are true of this checkout and nobody is told who reads it.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "pictures" / "badges.svg"
LETTER, PADDING, HEIGHT, GAP = 6.6, 7, 20, 6
DARK, COLOURS = "#3b4252", ("#2f6f9f", "#b4532a", "#3d7f56", "#6a5a9a")


def facts(project: str) -> list[tuple[str, str]]:
    """Names and values, read from the text of pyproject.toml."""
    pythons = re.findall(r"Programming Language :: Python :: (3\.\d+)", project)
    torch = re.search(r'"torch>=([\d.]+)"', project)
    licence = re.search(r'^license = "(.*)"$', project, flags=re.MULTILINE)
    assert torch and licence and "Typing :: Typed" in project and "strict = true" in project
    return [
        ("python", f"{pythons[0]} - {pythons[-1]}"),
        ("torch", f"{torch[1]} and newer"),
        ("license", licence[1]),
        ("typed", "mypy --strict"),
    ]


def draw(pairs: list[tuple[str, str]]) -> str:
    """One SVG with all badges in a row."""
    x, parts = 0.0, []
    for (name, value), colour in zip(pairs, COLOURS, strict=True):
        left, right = (LETTER * len(text) + 2 * PADDING for text in (name, value))
        for text, start, width, ground in ((name, x, left, DARK), (value, x + left, right, colour)):
            parts.append(
                f'<rect x="{start:.1f}" width="{width:.1f}" height="{HEIGHT}" fill="{ground}"/>'
                f'<text x="{start + width / 2:.1f}" y="14" text-anchor="middle" '
                f'textLength="{LETTER * len(text):.1f}">{text}</text>'
            )
        x += left + right + GAP
    said = ", ".join(f"{name} {value}" for name, value in pairs)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{x - GAP:.0f}" height="{HEIGHT}" '
        'role="img" font-family="Verdana, \'DejaVu Sans\', sans-serif" font-size="11" '
        f'fill="#ffffff">\n<title>{said}</title>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def main() -> None:
    """Draw them anew."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    PICTURE.write_text(draw(facts(project)), encoding="utf-8")


if __name__ == "__main__":
    main()
