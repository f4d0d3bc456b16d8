"""Every model name of timm or torchvision, or models of transformers: exactly restored?

    python -m benchmarks.coverage.coverage meta            # plan, swap, restore without values
    python -m benchmarks.coverage.coverage real --jobs 2   # on the CPU, with outputs and gradients
    python -m benchmarks.coverage.coverage report
    python -m benchmarks.coverage.coverage real --library torchvision
    python -m benchmarks.coverage.coverage real --library transformers

Each model runs in a process of its own; rows are appended to ``results/coverage_timm.csv`` as they
come, so a run that is killed goes on where it stopped. ``real`` takes the smallest models first, at
a reduced input size where the model allows one, and cuts the depth (else the width) of large ones
with timm's own arguments: the row says so. ``report`` writes ``results/coverage_timm.md``.
"""

from __future__ import annotations

import argparse
import fnmatch
import multiprocessing
import os
import resource
import time
from collections.abc import Iterator
from dataclasses import asdict
from multiprocessing.connection import Connection, wait

import torch

from benchmarks.common.csv_rows import append_row
from benchmarks.common.paths import RESULTS
from benchmarks.coverage.checks import measure
from benchmarks.coverage.libraries import LIBRARIES
from benchmarks.coverage.report import write_report
from benchmarks.coverage.rows import Row, drop, read_table, table

GIB = 2**30


def _work(
    library: str, name: str, mode: str, memory_gib: float, largest: float, out: Connection
) -> None:
    """In a child process: measure one model and send its row."""
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
        for receiver, (name, child, since) in list(running.items()):
            if receiver in ready:
                try:
                    row = receiver.recv()
                except EOFError:
                    child.join()
                    row = Row(name, mode, f"Killed: exit code {child.exitcode}")
            elif time.monotonic() - since > timeout:
                child.kill()
                row = Row(name, mode, f"Timeout: longer than {timeout:.0f} s")
            else:
                continue
            child.join()
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
        write_report(
            library,
            read_table(library, "meta"),
            read_table(library, "real"),
            RESULTS / f"coverage_{library}.md",
        )
        return
    os.nice(2)
    torch.set_num_threads(1)  # inherited by every child
    known = read_table(library, arguments.mode)
    if arguments.retry:
        failed = {name for name, row in known.items() if row["error"]}
        drop(library, arguments.mode, failed)
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


if __name__ == "__main__":
    main()
