"""Every model name of timm or torchvision, or models of transformers: exactly restored?

    python benchmarks/coverage.py meta            # plan, swap, restore on the meta device
    python benchmarks/coverage.py real --jobs 2   # the same with outputs and gradients, on the CPU
    python benchmarks/coverage.py report
    python benchmarks/coverage.py real --library torchvision
    python benchmarks/coverage.py real --library transformers

Each model runs in a process of its own; rows are appended to ``results/coverage_timm.csv`` as they
come, so a run that is killed goes on where it stopped. ``real`` takes the smallest models first, at
a reduced input size where the model allows one, and cuts the depth (else the width) of large ones
with timm's own arguments: the row says so. ``report`` writes ``results/coverage_timm.md``.
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import multiprocessing
import os
import resource
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from multiprocessing.connection import Connection, wait
from pathlib import Path

from coverage_libraries import LIBRARIES
from csv_rows import append_row, read_rows

RESULTS = Path(__file__).parent / "results"
GIB = 2**30


@dataclass
class Row:
    """What was found for one model; empty where it was not measured."""

    name: str
    mode: str
    error: str = ""
    parameters: int = 0
    norms: int = 0
    kinds: str = ""
    bound: int = 0
    statistics: int = 0
    skipped: int = 0
    unreached: int = 0
    reasons: str = ""
    bits: int = 0
    method: str = ""
    preset: str = ""
    built_with: str = ""
    input: str = ""
    public_eval_exact: str = ""
    public_train_exact: str = ""
    private_differs: str = ""
    gradients: str = ""
    keys_unchanged: str = ""
    restored: str = ""
    build_s: float = 0.0
    plan_s: float = 0.0
    passportize_s: float = 0.0
    restore_s: float = 0.0
    total_s: float = 0.0
    build_peak_mib: int = 0
    surgery_peak_mib: int = 0
    peak_mib: int = 0
    clock: str = "cpu"
    versions: str = ""


def table(library: str, mode: str) -> Path:
    """The file of one mode; each has one row per model."""
    return RESULTS / f"coverage_{library}{'' if mode == 'real' else '_meta'}.csv"


def read_table(library: str, mode: str) -> dict[str, dict[str, str]]:
    """The rows of one mode by the name of the model."""
    return {row["name"]: row for row in read_rows(table(library, mode))}


def _work(
    library: str, name: str, mode: str, memory_gib: float, largest: float, out: Connection
) -> None:
    """In a child process: measure one model and send its row."""
    from coverage_checks import measure

    limit = int(memory_gib * GIB)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    row = Row(name, mode)
    started = time.perf_counter()
    try:
        measure(library, row, largest)
    except BaseException as error:
        text = " ".join(str(error).split())[:300]
        row.error = f"{type(error).__name__}: {text}"
    row.total_s = time.perf_counter() - started
    out.send(row)
    out.close()


def _measured(
    library: str,
    names: list[str],
    mode: str,
    jobs: int,
    memory_gib: float,
    largest: float,
    timeout: float,
) -> Iterator[Row]:
    """Rows as they come, from up to ``jobs`` processes at a time."""
    import coverage_checks  # noqa: F401  imported once here, inherited by every child

    context = multiprocessing.get_context("fork")
    running: dict[Connection, tuple[str, multiprocessing.process.BaseProcess, float]] = {}
    waiting = list(reversed(names))
    while waiting or running:
        while waiting and len(running) < jobs:
            name = waiting.pop()
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(
                target=_work, args=(library, name, mode, memory_gib, largest, sender), daemon=True
            )
            process.start()
            sender.close()
            running[receiver] = (name, process, time.monotonic())
        ready = wait(list(running), timeout=1.0)
        for receiver, (name, process, since) in list(running.items()):
            if receiver in ready:
                try:
                    row = receiver.recv()
                except EOFError:
                    process.join()
                    row = Row(name, mode, f"Killed: exit code {process.exitcode}")
            elif time.monotonic() - since > timeout:
                process.kill()
                row = Row(name, mode, f"Timeout: longer than {timeout:.0f} s")
            else:
                continue
            process.join()
            receiver.close()
            del running[receiver]
            yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", choices=("meta", "real", "report"))
    parser.add_argument("--names", default="*", help="glob pattern on model names")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this long")
    parser.add_argument("--memory", type=float, default=20.0, help="GiB for each process")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for each model")
    parser.add_argument(
        "--largest", type=float, default=150e6, help="cut the depth of models with more parameters"
    )
    parser.add_argument("--retry", action="store_true", help="measure rows with an error again")
    parser.add_argument("--library", default="timm", choices=tuple(LIBRARIES))
    arguments = parser.parse_args()
    library = arguments.library
    if arguments.mode == "report":
        from coverage_report import write_report

        write_report(
            library,
            read_table(library, "meta"),
            read_table(library, "real"),
            RESULTS / f"coverage_{library}.md",
        )
        return
    os.nice(2)
    known = read_table(library, arguments.mode)
    if arguments.retry:
        failed = {name for name, row in known.items() if row["error"]}
        _drop(library, arguments.mode, failed)
        known = {name: row for name, row in known.items() if name not in failed}
    names = [
        name
        for name in LIBRARIES[library].names()
        if name not in known and fnmatch.fnmatch(name, arguments.names)
    ]
    if arguments.mode == "real":
        sizes = {name: int(row["parameters"]) for name, row in read_table(library, "meta").items()}
        names.sort(key=lambda name: sizes.get(name, 0) or 10**12)
    deadline = time.monotonic() + arguments.seconds
    rows = _measured(
        library,
        names,
        arguments.mode,
        arguments.jobs,
        arguments.memory,
        arguments.largest,
        arguments.timeout,
    )
    for done, row in enumerate(rows, start=1):
        append_row(table(library, row.mode), asdict(row))
        print(f"{done}/{len(names)} {row.name} {row.total_s:.1f} s {row.error}", flush=True)
        if time.monotonic() > deadline:
            break


def _drop(library: str, mode: str, names: set[str]) -> None:
    rows = [row for name, row in read_table(library, mode).items() if name not in names]
    path = table(library, mode)
    if path.exists():
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(
                file, [field.name for field in fields(Row)], lineterminator="\n"
            )
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
