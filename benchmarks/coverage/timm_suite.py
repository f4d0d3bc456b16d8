"""timm's own tests on models that were passportized and restored, beside fresh ones.

    python -m benchmarks.coverage.timm_suite run path/to/timm-1.0.31/tests --most-parameters 6e6
    python -m benchmarks.coverage.timm_suite report

The tests come with timm's sdist; nothing of them is in this project. Every test runs twice in one
process from the same seed: with the models that ``create_model`` builds, and with the same models
after ``passportize`` and ``unpassportize``. Tests of larger models are left out. Outcomes are
appended to ``results/timm_suite.csv`` as they come, so a run that is killed goes on where it
stopped; ``report`` writes ``results/timm_suite.md``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.common.csv_rows import append_row, read_rows
from benchmarks.common.paths import RESULTS
from benchmarks.coverage.timm_suite_names import FRESH, NEEDS_HUB, RESTORED
from benchmarks.coverage.timm_suite_plugin import Suite

ROWS = RESULTS / "timm_suite.csv"


def run(folder: Path, files: list[str], chosen: list[str], most: float, share: int) -> int:
    """Run the tests; returns pytest's exit status."""
    done = {(row["function"], row["case"], row["models"]) for row in read_rows(ROWS)}
    options = ["-q", "--no-header", "--tb=no", "-p", "no:cacheprovider", "-W", "ignore"]
    if chosen:
        options += ["-k", " or ".join(chosen)]
    suite = Suite(partial(append_row, ROWS), done, most, share)
    with suite.installed():
        return int(pytest.main([*options, *(str(folder / name) for name in files)], [suite]))


def _report_lines(rows: list[dict[str, str]]) -> Iterator[str]:
    outcomes = {(row["function"], row["case"], row["models"]): row for row in rows}
    pairs = [
        (row, outcomes[row["function"], row["case"], RESTORED])
        for row in rows
        if row["models"] == FRESH and (row["function"], row["case"], RESTORED) in outcomes
    ]
    versions = ", ".join(sorted({row["versions"] for row in rows}))
    yield "# timm's own tests on restored models\n"
    yield (
        "Made by `python -m benchmarks.coverage.timm_suite run` and `report`; one row per test in "
        f"`timm_suite.csv`. Versions: {versions}. *fresh*: models as timm builds them; *restored*: "
        "the same test from the same seed with every model that `create_model` returns, and every "
        "layer with a norm that the test calls, passportized and restored before. Left out: "
        f"{', '.join(NEEDS_HUB)}, which need weights from a hub.\n"
    )
    surgeries = sum(int(row["surgeries"]) for _, row in pairs)
    worse = [pair for pair in pairs if pair[0]["outcome"] != pair[1]["outcome"]]
    yield (
        f"{len(pairs)} tests ran with both; {surgeries} models were passportized and restored "
        f"for them. Tests whose outcome differs: **{len(worse)}**.\n"
    )
    kinds = ("passed", "skipped", "failed")
    yield f"| test | {' | '.join(f'fresh: {kind} | restored: {kind}' for kind in kinds)} |"
    yield "|---" * (2 * len(kinds) + 1) + "|"
    for function in dict.fromkeys(row["function"] for row, _ in pairs):
        own = [pair for pair in pairs if pair[0]["function"] == function]
        counts = [Counter(pair[side]["outcome"] for pair in own) for side in (0, 1)]
        cells = [f"{counts[0][kind]} | {counts[1][kind]}" for kind in kinds]
        yield f"| `{function}` | {' | '.join(cells)} |"
    for title, listed in (
        ("Outcomes that differ", worse),
        ("Failed with both", [p for p in pairs if p[0]["outcome"] == p[1]["outcome"] == "failed"]),
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", choices=("run", "report"))
    parser.add_argument("folder", nargs="?", type=Path, help="folder of timm's tests")
    parser.add_argument("--files", nargs="+", default=["test_layers.py", "test_models.py"])
    parser.add_argument("--tests", nargs="*", default=[], help="parts of names of test functions")
    parser.add_argument("--most-parameters", type=float, default=6e6)
    parser.add_argument("--share", type=int, default=1, help="of each function every n-th case")
    arguments = parser.parse_args()
    if arguments.mode == "report":
        page = RESULTS / "timm_suite.md"
        page.write_text("\n".join(_report_lines(read_rows(ROWS))) + "\n")
        print(page)
        return 0
    if arguments.folder is None or not arguments.folder.is_dir():
        parser.error("run needs the folder with timm's tests (unpack timm's sdist)")
    os.nice(2)
    torch.set_num_threads(1)
    return run(
        arguments.folder,
        arguments.files,
        arguments.tests,
        arguments.most_parameters,
        arguments.share,
    )


if __name__ == "__main__":
    sys.exit(main())
