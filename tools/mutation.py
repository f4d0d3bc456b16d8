"""Which small changes of a formula no test would notice.

For every file of ``tools/mutation.toml`` every mutant (a sign, a boundary, a number, a call taken
away, see ``mutation_operators.py``) is put in the place of the file in a copy of the checkout, and
the tests that are named beside the file run. A mutant that they pass has survived: a test is
missing, or the change makes no difference, and then the reason stands in the configuration.

    python tools/mutation.py                      # all files
    python tools/mutation.py statistics scales    # those whose path holds one of these words

Results: ``tests/mutation.json`` and, for reading, ``mutation.md`` beside it.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import toml
from mutation_operators import Mutant, mutants_of
from mutation_page import page

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "tests"
COPIED = ("passportize", "adapters", "tests", "docs", "pyproject.toml")
# Imported once; a mutant is tried in a fork, which has them already.
PRELOADED = ("torch", "numpy", "scipy.special", "scipy.stats", "scipy.optimize", "sklearn.datasets",
             "safetensors.torch", "cryptography.hazmat.primitives.kdf.hkdf", "timm")  # fmt: skip
OPTIONS = ("-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--hypothesis-seed=0",
           "-W", "ignore::pytest.PytestAssertRewriteWarning")  # fmt: skip
KILLED, SURVIVED, TIMED_OUT = "killed", "survived", "timed out"


def run_tests(tests: Sequence[str], limit: float) -> str:
    """Run tests in a fork of this process, which stands in the copy; what became of the mutant."""
    child = os.fork()
    if child == 0:
        code = 3
        try:
            os.setsid()
            with Path("mutation.log").open("w") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                code = int(pytest.main([*OPTIONS, *tests]))
        finally:
            # Whatever happens: nothing of the parent may run to its end here.
            os._exit(code)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            return SURVIVED if status == 0 else KILLED
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return TIMED_OUT


def try_file(
    name: str, tests: Sequence[str], equivalent: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Try all mutants of one file of the copy.

    Args:
        name: Path of the file.
        tests: The tests that should kill its mutants.
        equivalent: Changes that make no difference, with reasons.
    """
    path, start = Path(name), time.monotonic()
    source = path.read_text()
    if run_tests(tests, 600.0) != SURVIVED:
        sys.exit(f"the tests of {name} fail without a mutant:\n{Path('mutation.log').read_text()}")
    limit = 10.0 + 5.0 * (time.monotonic() - start)
    reasons = {(one["before"], after): one["why"] for one in equivalent for after in one["after"]}
    result: dict[str, Any] = {"tests": list(tests), "mutants": 0, "timed_out": 0, "survivors": []}
    for number, mutant in enumerate(mutants_of(source)):
        # Another date each time, or Python would take the last mutant from its cache.
        path.write_text(mutant.source)
        os.utime(path, (1e9 + number, 1e9 + number))
        outcome = run_tests(tests, limit)
        result["mutants"] += 1
        result["timed_out"] += outcome == TIMED_OUT
        if outcome == SURVIVED:
            why = reasons.pop((mutant.before, mutant.after), "")
            result["survivors"].append(_described(mutant, why))
            if not why:
                print(f"{name}:{mutant.line}\n  - {mutant.before}\n  + {mutant.after}", flush=True)
    path.write_text(source)
    for before, after in reasons:
        print(f"{name}: said to be equivalent, but killed or gone:\n  - {before}\n  + {after}")
    result["seconds"] = round(time.monotonic() - start)
    return result


def _described(mutant: Mutant, why: str) -> dict[str, Any]:
    return {"line": mutant.line, "before": mutant.before, "after": mutant.after, "why": why}


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()


def main(words: Sequence[str]) -> int:
    """Try the files that were asked for; 1 if a mutant survived for no known reason."""
    settings = toml.loads((ROOT / "tools" / "mutation.toml").read_text())
    record = RESULTS / "mutation.json"
    results: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {}
    results = {name: results[name] for name in settings["tests"] if name in results}
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in PRELOADED:
        importlib.import_module(name)
    importlib.import_module("torch").set_num_threads(1)
    sys.dont_write_bytecode = True
    unexplained = 0
    with tempfile.TemporaryDirectory() as folder:
        for item in COPIED:
            if (ROOT / item).is_dir():
                shutil.copytree(ROOT / item, Path(folder) / item, symlinks=True)
            else:
                shutil.copy(ROOT / item, folder)
        os.chdir(folder)
        sys.path.insert(0, folder)
        for name, tests in settings["tests"].items():
            if words and not any(word in name for word in words):
                continue
            equivalent = [one for one in settings.get("equivalent", ()) if one["file"] == name]
            result = try_file(name, tests, equivalent)
            result["commit"] = _git("rev-parse", "--short=7", "HEAD")
            result["blob"] = _git("hash-object", name)[:10]
            results[name] = result
            left = sum(not survivor["why"] for survivor in result["survivors"])
            unexplained += left
            print(f"{name}: {result['mutants']} mutants, {left} survived", flush=True)
            ordered = {name: results[name] for name in settings["tests"] if name in results}
            record.write_text(json.dumps(ordered, indent=1) + "\n")
            (RESULTS / "mutation.md").write_text(page(ordered))
        os.chdir(ROOT)
    return int(unexplained > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
