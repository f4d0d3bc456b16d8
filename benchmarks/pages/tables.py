"""Write docs/results.md and the table in README.md from the committed results.

So no number is typed by hand.

    python -m benchmarks.pages.tables            # writes both
    python -m benchmarks.pages.tables --check    # says whether they are up to date
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.common.paths import RESULTS, ROOT
from benchmarks.pages.attacked import attacked
from benchmarks.pages.headline import headline
from benchmarks.pages.markdown import wrapped
from benchmarks.pages.overview import covered, overview
from benchmarks.pages.sections import cost, demo, protection, stability

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
README, PAGE = ROOT / "README.md", ROOT / "docs" / "results.md"
MORE = (
    "The demo, quartiles, strangers, learning rates, timm's own tests and train scripts, disguises "
    "and point clouds: [docs/results.md](docs/results.md)."
)
SECTIONS = {"demo": demo, "cost": cost, "protection": protection, "stability": stability}


def page(records: dict[str, dict[str, Any]]) -> str:
    """The whole of docs/results.md."""
    parts = [
        "# Results",
        "Written by `python -m benchmarks.pages.tables` from `benchmarks/results/`; do not edit. "
        "How each number is measured again: [benchmarks](../benchmarks/README.md).",
        overview(records["stability"]),
        *(
            f"{section(records[name])}\n\nFile: [{name}.json](../benchmarks/results/{name}.json)."
            for name, section in SECTIONS.items()
        ),
    ]
    return "\n\n".join(parts) + "\n"


def readme(text: str, records: dict[str, dict[str, Any]]) -> str:
    """README.md, what stands between its two marks written anew.

    Raises:
        ValueError: A mark is missing.
    """
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"no {BEGIN} with {END} behind it in the text")
    written = "\n\n".join(
        [headline(records), wrapped(f"{covered()} {MORE}"), attacked(records["bench_attacks"])]
    )
    return f"{before}{BEGIN}\n{written}\n{END}{after}"


def results() -> dict[str, dict[str, Any]]:
    """The records that the two files are written from."""
    return {
        name: json.loads((RESULTS / f"{name}.json").read_text())
        for name in (*SECTIONS, "bench_attacks")
    }


def pages() -> dict[Path, str]:
    """What each of the two files has to hold."""
    records = results()
    return {PAGE: page(records), README: readme(README.read_text(), records)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if out of date")
    arguments = parser.parse_args()
    if arguments.check:
        return int(any(path.read_text() != text for path, text in pages().items()))
    for path, text in pages().items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
