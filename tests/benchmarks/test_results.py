"""The committed pages hold what the committed rows say, and nothing else."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch_geometric")

from benchmarks.bench import page as bench_page
from benchmarks.bench import published
from benchmarks.common.csv_rows import read_rows
from benchmarks.common.paths import RESULTS
from benchmarks.cost import surgery
from benchmarks.coverage import public as public_sweep
from benchmarks.coverage.report import write_report
from benchmarks.coverage.rows import read_table
from benchmarks.coverage.timm_suite_page import write_page as write_timm_suite
from benchmarks.marking import page as marking
from benchmarks.point_clouds import pointnet_table, public
from benchmarks.proof import (
    detectors,
    disguises,
    dummies_page,
    followed,
    kin,
    merged,
    null,
    predictions,
    symmetries,
)
from benchmarks.robustness import crafted_files, interruptions
from benchmarks.suspects import kinds
from benchmarks.train_scripts import day
from benchmarks.train_scripts.page import write_page as write_train_scripts
from benchmarks.train_scripts.runs import COMMON
from benchmarks.training import timm_families
from benchmarks.training.timm_page import write_page as write_families
from tools import packaging


def coverage(path: Path) -> None:
    library = path.stem.removeprefix("coverage_")
    write_report(library, read_table(library, "meta"), read_table(library, "real"), path)


def families(path: Path) -> None:
    its = timm_families
    rows = read_rows(its.TABLE)
    write_families(path, rows, its.STEPS, its.BATCH, its.SIZE, its.RATES, its.WARM_UP)


def record(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def suspects(path: Path) -> None:
    path.write_text(disguises.table(record("disguises")))


PAGES: dict[str, Callable[[Path], object]] = {
    "coverage_timm": coverage,
    "coverage_torchvision": coverage,
    "coverage_transformers": coverage,
    "timm_suite": lambda path: write_timm_suite(path, read_rows(RESULTS / "timm_suite.csv")),
    "training_timm": families,
    "train_scripts": lambda path: write_train_scripts(
        path, read_rows(RESULTS / "train_scripts.csv"), COMMON
    ),
    "point_cloud": lambda path: path.write_text(
        pointnet_table.explain(pointnet_table.read_rows(RESULTS / "point_cloud.csv"))
    ),
    "point_cloud_public": lambda path: path.write_text(
        public.table(read_rows(RESULTS / "point_cloud_public.csv"))
    ),
    "disguises": suspects,
    "marking": lambda path: path.write_text(marking.page()),
    "dummies": lambda path: path.write_text(dummies_page.page(record("dummies"))),
    "followed": lambda path: path.write_text(followed.table(record("followed"))),
    "merged": lambda path: path.write_text(merged.table(record("merged"))),
    "symmetries": lambda path: path.write_text(symmetries.table(record("symmetries"))),
    "kin": lambda path: path.write_text(kin.table(record("kin"))),
    "suspect_kinds": lambda path: path.write_text(kinds.page(record("suspect_kinds"))),
    "detectors": lambda path: path.write_text(detectors.table(record("detectors"))),
    "null": lambda path: path.write_text(null.table(record("null"))),
    "predictions": lambda path: path.write_text(predictions.table(record("predictions"))),
    "crafted_files": lambda path: path.write_text(crafted_files.table(record("crafted_files"))),
    "day": lambda path: path.write_text(day.page(record("day"))),
    "surgery": lambda path: path.write_text(surgery.table(record("surgery"))),
    "interruptions": lambda path: path.write_text(interruptions.table(record("interruptions"))),
    "public_models": lambda path: path.write_text(
        public_sweep.page(read_rows(RESULTS / "public_models.csv"))
    ),
    "packaging": lambda path: path.write_text(packaging.page(record("packaging")["rows"])),
}


def bench(path: Path) -> None:
    found = record(path.stem)
    # One table may be there for several budgets.
    table = importlib.import_module(found["command"].removeprefix("python -m ")).TABLE
    path.write_text(bench_page.page(table, found, f"{path.stem}.svg"))


PAGES |= {path.stem: bench for path in RESULTS.glob("bench_*.json")}
PAGES["bench"] = lambda path: path.write_text(published.page(published.records()))


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_what_its_rows_give(name: str, tmp_path: Path) -> None:
    page = tmp_path / f"{name}.md"
    PAGES[name](page)
    assert page.read_text() == (RESULTS / page.name).read_text()


def test_every_page_is_among_them() -> None:
    assert {path.stem for path in RESULTS.glob("*.md")} == set(PAGES)
