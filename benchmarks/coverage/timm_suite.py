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
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.common.csv_rows import append_row, read_rows
from benchmarks.common.paths import RESULTS
from benchmarks.coverage.timm_suite_page import write_page
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
        print(write_page(RESULTS / "timm_suite.md", read_rows(ROWS)))
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
