"""What all tables of the bench share: options, resuming, one record, one page, one plot.

A table is a plan of cases and a function that lists the rows of one of them, each with a function
that measures it. The record is written after every row, so a run that was stopped goes on where it
was. A set that is not there makes a row that waits: it is tried again in the next run.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench.budgets import BUDGETS, Budget
from benchmarks.bench.cases import SCHEMES, Bench, Case
from benchmarks.bench.columns import Column, Measured, Row
from benchmarks.bench.page import page
from benchmarks.bench.plots import Plot
from benchmarks.common.paths import RESULTS, ROOT
from benchmarks.common.records import heading, write_record
from passportize.data.sets import SETS
from passportize.errors import DatasetError, MissingExtra

__all__ = ["Table", "run", "write_pages"]


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        name: Of its files, ``bench_<name>``, and of its module.
        question: What it answers, one sentence.
        about: What is measured, for the page.
        keys: Names of what cases and rows differ in beside the seed, with their headings.
        columns: Heading and text of each other column.
        measure: Rows of one case: the keys of each, beside the case's own, and what measures it.
        sets: Those it is about.
        networks, norms, schemes: The same.
        plot: What is drawn of it.
        smoke_sets: What stands in for the sets in CI.
        below: What the page says under the table.
    """

    name: str
    question: str
    about: str
    keys: Mapping[str, str]
    columns: Mapping[str, Column]
    measure: Callable[[Bench, Case], Measured]
    sets: Sequence[str]
    plot: Plot
    networks: Sequence[str] = ("resnet18",)
    norms: Sequence[str] = ("bn",)
    schemes: Sequence[str] = SCHEMES
    smoke_sets: Sequence[str] = ("digits",)
    below: Callable[[Sequence[Row]], str] = field(default=lambda rows: "")

    @property
    def module(self) -> str:
        """What is started."""
        return f"benchmarks.bench.{self.name}"


def run(table: Table, arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing of a table and write its record, page and plot."""
    options = _options(table, arguments)
    torch.set_num_threads(options.threads)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    budget = _budget(options)
    record = _started(table, budget, options)
    if not options.report:
        bench = Bench(budget, options.root, options.models, options.device)
        for case in _cases(table, budget, options):
            _measured(table, bench, case, record, options.out)
    write_pages(table, record, options.out)
    return 0


def write_pages(table: Table, record: dict[str, Any], out: Path) -> None:
    """Record, page and plot; the same files that a run writes."""
    text = page(table, record, plot=out.with_suffix(".svg").name)
    write_record(out, record, text)
    table.plot.draw(record["rows"], out.with_suffix(".svg"))


def _measured(table: Table, bench: Bench, case: Case, record: dict[str, Any], out: Path) -> None:
    """Measure the rows of one case that are not there yet, and write the record after each."""
    if case.key in record["finished"]:
        return
    rows: list[dict[str, Any]] = record["rows"]
    for row in [row for row in rows if row.get("waits") and _agree(row, case.key)]:
        rows.remove(row)

    def add(row: dict[str, Any]) -> None:
        rows.append(row)
        print(json.dumps(row), flush=True)
        write_record(out, record, page(table, record, plot=out.with_suffix(".svg").name))

    try:
        for keys, measure in table.measure(bench, case):
            named = {**case.key, **keys}
            if not any(_agree(row, named) for row in rows):
                add({**named, **measure()})
    except (DatasetError, MissingExtra) as error:
        print(f"{case.set}: waits for data. {error}")
        add({**case.key, "waits": True})
        return
    record["finished"].append(case.key)
    write_record(out, record, page(table, record, plot=out.with_suffix(".svg").name))


def _agree(row: Row, keys: Row) -> bool:
    return all(row.get(name) == value for name, value in keys.items())


def _started(table: Table, budget: Budget, options: argparse.Namespace) -> dict[str, Any]:
    """The record so far, or a new one.

    Raises:
        SystemExit: The file has rows of another budget, which are not to be mixed.
    """
    begun: dict[str, Any] = {
        **heading(table.question, table.module, f"{options.threads} thread(s)"),
        "budget": budget.to_dict(),
        "finished": [],
        "rows": [],
    }
    if not options.out.exists():
        return begun
    kept: dict[str, Any] = json.loads(options.out.read_text())
    if options.report:
        return kept
    if kept["budget"] != begun["budget"]:
        raise SystemExit(
            f"{options.out} holds rows of another budget ({kept['budget']}); give the same one, "
            "another --out, or delete the file"
        )
    return kept


def _cases(table: Table, budget: Budget, options: argparse.Namespace) -> list[Case]:
    """Seeds outermost, so that a run that is cut short has whole comparisons."""
    sets = options.sets or (table.smoke_sets if budget.small else table.sets)
    networks = options.networks or table.networks
    norms = options.norms or table.norms
    if budget.small:
        # Five norms instead of twenty: a quarter of the time, in tracing above all.
        networks = ["alexnet" if name == "resnet18" else name for name in networks[:1]]
        norms = norms[:1]
    seeds = options.seeds if options.seeds is not None else range(budget.seeds)
    return [
        Case(name, network, norm, scheme, seed)
        for name in sets
        for network in networks
        for norm in norms
        for seed in seeds
        for scheme in options.schemes or table.schemes
    ]


def _budget(options: argparse.Namespace) -> Budget:
    changes: dict[str, Any] = {
        name: value
        for name in ("width", "epochs", "images", "test_images", "batch", "attack_epochs")
        if (value := getattr(options, name)) is not None
    }
    if changes:
        changes["name"] = f"{options.budget}, changed"
    return replace(BUDGETS[options.budget], **changes)


def _options(table: Table, arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m {table.module}", description=table.question)
    parser.add_argument("--budget", choices=sorted(BUDGETS), default="cpu")
    parser.add_argument("--root", help="folder with the sets that no package brings")
    parser.add_argument("--sets", nargs="*", choices=sorted(SETS))
    parser.add_argument("--networks", nargs="*")
    parser.add_argument("--norms", nargs="*")
    parser.add_argument("--schemes", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="*")
    parser.add_argument("--width", type=float, help="instead of the budget's, as all below")
    for name in ("epochs", "images", "test-images", "batch", "attack-epochs"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--models", type=Path, default=ROOT / "out" / "bench" / "models")
    parser.add_argument("--out", type=Path, default=RESULTS / f"bench_{table.name}.json")
    parser.add_argument("--report", action="store_true", help="page and plot alone, nothing runs")
    return parser.parse_args(arguments)
