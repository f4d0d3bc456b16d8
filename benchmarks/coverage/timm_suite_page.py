"""The page about timm's own tests: how many ended how, with fresh and with restored models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.coverage.timm_suite_names import FRESH, NEEDS_HUB, RESTORED

Record = Mapping[str, str]


def write_page(path: Path, rows: Sequence[Record]) -> Path:
    """Write the counts, and every outcome that differs."""
    path.write_text("\n".join(_lines(rows)) + "\n")
    return path


def pairs(rows: Sequence[Record]) -> list[tuple[Record, Record]]:
    """Outcomes of every test that ran with both kinds of models: fresh, restored."""
    outcomes = {(row["function"], row["case"], row["models"]): row for row in rows}
    return [
        (row, outcomes[row["function"], row["case"], RESTORED])
        for row in rows
        if row["models"] == FRESH and (row["function"], row["case"], RESTORED) in outcomes
    ]


def _lines(rows: Sequence[Record]) -> Iterator[str]:
    found = pairs(rows)
    versions = ", ".join(sorted({row["versions"] for row in rows}))
    yield "# timm's own tests on restored models\n"
    yield (
        "Made by `python -m benchmarks.coverage.timm_suite run` and `report`; one row per test in "
        f"`timm_suite.csv`. Versions: {versions}. *fresh*: models as timm builds them; *restored*: "
        "the same test from the same seed with every model that `create_model` returns, and every "
        "layer with a norm that the test calls, passportized and restored before. Left out: "
        f"{', '.join(NEEDS_HUB)}, which need weights from a hub.\n"
    )
    surgeries = sum(int(row["surgeries"]) for _, row in found)
    worse = [pair for pair in found if pair[0]["outcome"] != pair[1]["outcome"]]
    yield (
        f"{len(found)} tests ran with both; {surgeries} models were passportized and restored "
        f"for them. Tests whose outcome differs: **{len(worse)}**.\n"
    )
    kinds = ("passed", "skipped", "failed")
    yield f"| test | {' | '.join(f'fresh: {kind} | restored: {kind}' for kind in kinds)} |"
    yield "|---" * (2 * len(kinds) + 1) + "|"
    for function in dict.fromkeys(row["function"] for row, _ in found):
        own = [pair for pair in found if pair[0]["function"] == function]
        counts = [Counter(pair[side]["outcome"] for pair in own) for side in (0, 1)]
        cells = [f"{counts[0][kind]} | {counts[1][kind]}" for kind in kinds]
        yield f"| `{function}` | {' | '.join(cells)} |"
    for title, listed in (
        ("Outcomes that differ", worse),
        ("Failed with both", [p for p in found if p[0]["outcome"] == p[1]["outcome"] == "failed"]),
    ):
        yield f"\n## {title}\n"
        if not listed:
            yield "None."
            continue
        yield "| test | fresh | restored |"
        yield "|---|---|---|"
        for row, other in listed:
            sides = [f"{side['outcome']} {side['reason']}".strip() for side in (row, other)]
            yield f"| `{row['function']}[{row['case']}]` | {sides[0]} | {sides[1]} |"
