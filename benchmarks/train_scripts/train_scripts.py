"""timm's own ``train.py``, unedited, of several versions with their own timm, with a passport.

    git clone https://github.com/huggingface/pytorch-image-models
    python -m benchmarks.train_scripts.train_scripts --timm-source pytorch-image-models
    python -m benchmarks.train_scripts.train_scripts --report    # the page alone

Nothing of timm is in this project: the scripts are taken out of the clone's history, timm itself
is installed by pip, one folder for each version. Main's script runs with the timm that is
installed. Data are a few small pictures of noise, so this says that runs end and what is in their
files, and nothing about accuracy. The runs are in ``runs.py``, what is checked after each in
``checks.py``. Rows go to ``results/train_scripts.csv`` as they come, so a benchmark that is killed
goes on where it was; the page is ``results/train_scripts.md``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

import passportize as pp
from benchmarks.common.csv_rows import append_row, read_rows
from benchmarks.common.paths import RESULTS, ROOT
from benchmarks.train_scripts.page import write_page
from benchmarks.train_scripts.runs import COMMON, MAIN, RUNS, VERSIONS, Run, command, stages

TABLE, PAGE = RESULTS / "train_scripts.csv", RESULTS / "train_scripts.md"
CHECKS = "benchmarks.train_scripts.checks"
SCRIPTS = ("train.py", "validate.py", "clean_checkpoint.py")
PASSPORT = pp.Passport.generate("train scripts", date="2026-01-01", secret=bytes(range(32)))
CLASSES, PICTURES, SIDE = 3, 16, 40
COLUMNS = (
    *("script", "name", "passport", "processes", "arguments", "own", "outcome", "seconds"),
    *("timm", "torch", "bits", "right", "right_ema", "public", "public_ema", "moved_ema"),
    *("finite", "trace", "plain_checkpoint", "accepted", "strength", "public_loss", "tools"),
    *("compared", "private", "different", "first_different", "commands"),
)


def prepare(source: Path, work: Path) -> dict[str, str]:
    """Scripts, packages, pictures and passport in a folder; returns what each version is called."""
    called = {}
    for version in VERSIONS:
        commit = "HEAD" if version == MAIN else version
        folder = work / version
        folder.mkdir(parents=True, exist_ok=True)
        for name in SCRIPTS:
            (folder / name).write_bytes(_git(source, "show", f"{commit}:{name}"))
        called[version] = version
        if version == MAIN:
            number = _git(source, "show", "HEAD:timm/version.py").decode().split("'")[1]
            short = _git(source, "rev-parse", "--short=8", "HEAD").decode().strip()
            called[version] = f"main {short} ({number})"
        elif not (folder / "site").exists():
            pip = (sys.executable, "-m", "pip", "install", "-qq", "--no-deps")
            target = ("--target", str(folder / "site"))
            subprocess.run([*pip, *target, f"timm=={version[1:]}"], check=True)
    pixels = random.Random(0)
    for split in ("train", "validation"):
        for label in range(CLASSES):
            folder = work / "data" / split / f"class{label}"
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(PICTURES):
                picture = Image.frombytes("RGB", (SIDE, SIDE), pixels.randbytes(3 * SIDE * SIDE))
                picture.save(folder / f"{index}.png")
    PASSPORT.save(work / "acme.passport", overwrite=True)
    shutil.copy(ROOT / "benchmarks" / "common" / "ddp_on_cpu.py", work)
    return called


def _git(source: Path, *arguments: str) -> bytes:
    return subprocess.run(
        ["git", "-C", str(source), *arguments], check=True, capture_output=True
    ).stdout


def call(words: list[str], work: Path, version: str, limit: float) -> tuple[int | None, str, str]:
    """Exit status (None: over the limit), standard output and error, in the version's timm."""
    site = [] if version == MAIN else [str(work / version / "site")]
    paths = [*site, str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    process = subprocess.Popen(
        [sys.executable, *words[1:]],
        cwd=work,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, error = process.communicate(timeout=limit)
        return process.returncode, output, error
    except subprocess.TimeoutExpired:
        # torchrun ends its ranks, which are in sessions of their own, only if it is asked to end.
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        output, error = process.communicate()
        return None, output, error


def perform(run: Run, version: str, work: Path, limit: float) -> dict[str, Any]:
    """Run it, look at what it wrote; returns the row."""
    shutil.rmtree(work / "output", ignore_errors=True)
    for file in work.glob("*.safetensors"):
        file.unlink()
    lines, start, outcome, status = [], time.perf_counter(), "ok", None
    for stage, further in stages(run):
        words = command(run, version, stage, further)
        lines.append(shlex.join(words))
        status, _, error = call(words, work, version, limit)
        if status != 0:
            outcome = f"over {limit:g} s" if status is None else _last_line(error)
            break
    row: dict[str, Any] = {
        "passport": run.passport,
        "processes": run.processes,
        "arguments": "; then ".join(
            shlex.join(part) for part in (run.arguments, run.then) if part is not None
        ),
        "own": shlex.join(run.own),
        "outcome": outcome,
        "seconds": round(time.perf_counter() - start),
        "commands": "\n".join(lines),
    }
    if run.refused:
        early = status not in (None, 0) and not (work / "output").exists()
        told = f"InvalidArgument: {run.refused}" in outcome
        row["outcome"] = f"{'refused' if early and told else 'NOT REFUSED'}: {outcome}"
        return row
    if run.passport and (work / "output" / stage / "last.pth.tar").exists():
        row |= inspect(run, version, stage, work)
    if run.halves and outcome == "ok":
        halves = [f"output/{name}/last.pth.tar" for name in ("whole", "second")]
        row |= ask(["same", *halves], work, version)
    return row


def inspect(run: Run, version: str, stage: str, work: Path) -> dict[str, Any]:
    """What is in the files of a run."""
    files = (f"output/{stage}/last.pth.tar", f"{stage}.claim.safetensors", "released.safetensors")
    own = ("--passport", "acme.passport", *run.own, f"{version}/train.py")
    answer = ask(["look", *files, *own], work, version)
    written = work / "output" / stage
    answer["trace"] = any(answer.get(f"trace{suffix}", False) for suffix in ("", "_ema")) or (
        "passport" in (written / "args.yaml").read_text()
    )
    summary = read_rows(written / "summary.csv")
    answer["public_loss"] = summary[-1].get("train_public_loss", "") if summary else ""
    if run.tools and "bits" in answer:
        given = files[0] if answer["plain_checkpoint"] else files[2]
        answer["tools"] = tools(given, version, work)
    return answer


def tools(weights: str, version: str, work: Path) -> str:
    """Other scripts of timm on a file: how they ended."""
    shape = ("--model", "resnet10t", "--num-classes", "3", "--img-size", "32", "--device", "cpu")
    validate = (f"{version}/validate.py", "--data-dir", "data", *shape, "-j", "1", "-b", "8")
    clean = (f"{version}/clean_checkpoint.py", "--no-hash", "--safetensors")
    cleaned = "cleaned.safetensors"
    told = []
    for words in (
        ("python", *validate, "--checkpoint", weights),
        ("python", *clean, "--checkpoint", weights, "--output", cleaned),
    ):
        status, _, error = call(list(words), work, version, 120)
        told.append("ok" if status == 0 else _last_line(error))
    if not (work / cleaned).exists() or b"passport" in (work / cleaned).read_bytes():
        told[-1] += ", but the cleaned file is missing or names the passport"
    return f"{weights.rpartition('/')[2]}: validate {told[0]}, clean {told[1]}"


def ask(arguments: list[str], work: Path, version: str) -> dict[str, Any]:
    """The answer of ``checks.py``."""
    status, output, error = call(["python", "-m", CHECKS, *arguments], work, version, 300)
    if status == 0:
        answer: dict[str, Any] = json.loads(output.splitlines()[-1])
        return answer
    return {"outcome": f"check failed: {_last_line(error)}"}


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if "Error" in line or "InvalidArg" in line]
    return (lines or text.splitlines() or [""])[-1].strip()[-300:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--timm-source", type=Path, help="a clone of timm's repository")
    parser.add_argument("--work", type=Path, help="where to work; a temporary folder by default")
    parser.add_argument("--limit", type=float, default=180.0, help="seconds for one command")
    parser.add_argument("--only", nargs="*", default=[], help="names of runs")
    parser.add_argument("--report", action="store_true", help="write the page, run nothing")
    options = parser.parse_args()
    if not options.report:
        if options.timm_source is None:
            parser.error("give a clone of timm's repository with --timm-source")
        with tempfile.TemporaryDirectory(prefix="train_scripts_") as temporary:
            work = (options.work or Path(temporary)).resolve()
            called = prepare(options.timm_source, work)
            for run in RUNS:
                for version in run.versions:
                    key = called[version], run.name, str(run.passport)
                    rows = read_rows(TABLE)
                    # What went over its limit is tried again; both rows are kept.
                    ended = [row for row in rows if not row["outcome"].startswith("over")]
                    if key in {(r["script"], r["name"], r["passport"]) for r in ended}:
                        continue
                    if options.only and run.name not in options.only:
                        continue
                    row = perform(run, version, work, options.limit)
                    row |= {"script": key[0], "name": run.name}
                    append_row(TABLE, {column: row.get(column, "") for column in COLUMNS})
                    print(*key, row["outcome"], row.get("right", ""), row.get("bits", ""))
    print(write_page(PAGE, read_rows(TABLE), COMMON))


if __name__ == "__main__":
    main()
