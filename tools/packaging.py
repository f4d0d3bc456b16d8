"""Builds wheel and sdist, installs them into fresh environments, and tries what a newcomer tries.

    python -m tools.packaging --pythons 3.10 3.13 --torch 2.8.0 newest

For each pair: a new environment, torch, the wheel with its extras, `passportize plan resnet18`, the
demo, a typed program under mypy and pyright; then the sdist in place of the wheel, and the plan
again. Takes minutes and gigabytes for each, so it is no part of CI. What could not be tried is a
row that says why. Rows are added to benchmarks/results/packaging.json as they come, one for each
pair, and packaging.md is written from them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PROGRAM = ROOT / "tests" / "packaging" / "typed_program.py"
NEWEST = "newest"
STEPS = ("torch", "wheel", "plan", "demo", "mypy", "pyright", "sdist", "plan from sdist")


class Failed(Exception):
    """A step that did not end well."""


def run(*command: str | Path, folder: Path, limit: int = 3600) -> str:
    """Standard output of a command, far from the checkout."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment = {**clean, "OMP_NUM_THREADS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=limit,
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise Failed(said[-1] if said else f"exit code {done.returncode}")
    return done.stdout


def find_python(version: str) -> Path | None:
    """An interpreter of this version that starts: of pyenv, on the path, or one of uv."""
    known = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for found in [*known.glob(f"{version}.*/bin/python3"), shutil.which(f"python{version}")]:
        # A name on the path may be a shim for a version that is not there.
        if found and not subprocess.run([found, "--version"], capture_output=True).returncode:
            return Path(found)
    if shutil.which("uv"):
        subprocess.run(["uv", "python", "install", version], capture_output=True)
        done = subprocess.run(["uv", "python", "find", version], capture_output=True, text=True)
        if not done.returncode:
            return Path(done.stdout.strip())
    return None


def try_pair(python: Path, torch: str, built: Path, place: Path) -> dict[str, Any]:
    """All steps in a new environment; the seconds of each, or why it ended."""
    binary = place / "env" / "bin"
    wheel, sdist = next(built.glob("*.whl")), next(built.glob("*.tar.gz"))
    if not binary.is_dir():
        run(python, "-m", "venv", place / "env", folder=place)
    # timm brings torchvision, whose newest would bring another torch.
    wanted = "" if torch == NEWEST else f"torch=={torch}\n"
    (place / "constraints.txt").write_text(wanted, encoding="utf-8")
    pip = (binary / "pip", "install", "-q", "-c", "constraints.txt")
    plan = (binary / "passportize", "plan", "resnet18")
    shutil.copy(PROGRAM, place / "program.py")
    checker = (binary / "pyright", "--pythonpath", binary / "python", "program.py")
    commands: dict[str, tuple[tuple[str | Path, ...], ...]] = {
        "torch": ((*pip, "torch"),),
        "wheel": ((*pip, f"{wheel}[demo]"),),
        "plan": (plan,),
        "demo": ((binary / "passportize", "demo", "-o", "demo"),),
        "mypy": ((*pip, "mypy"), (binary / "mypy", "--strict", "program.py")),
        "pyright": ((*pip, "pyright"), checker),
        "sdist": ((*pip, "--no-deps", "--force-reinstall", sdist),),
        "plan from sdist": (plan,),
    }
    seconds: dict[str, float] = {}
    row: dict[str, Any] = {"seconds": seconds}
    for name in STEPS:
        start = time.perf_counter()
        try:
            said = [run(*command, folder=place) for command in commands[name]]
        except (Failed, subprocess.TimeoutExpired) as error:
            row["failed"] = {"step": name, "said": str(error)[:300]}
            return row
        seconds[name] = round(time.perf_counter() - start, 1)
        if name.startswith("plan"):
            row[name] = next(line for line in said[0].splitlines() if line.startswith("ResNet:"))
        if name == "wheel":
            code = "import sys, torch; print(sys.version.split()[0], torch.__version__)"
            row["versions"] = run(binary / "python", "-c", code, folder=place).split()
    size = sum(file.stat().st_size for file in (place / "env").rglob("*") if file.is_file())
    row["environment_gb"] = round(size / 1e9, 2)
    return row


def page(rows: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = [
        "# Wheel and sdist in fresh environments",
        "",
        "Written by `python -m tools.packaging`, which says what each step is; do not edit.",
        "Seconds are wall-clock, on a busy machine, downloads included. Empty: not reached.",
        "",
        f"| Python | torch | {' | '.join(STEPS)} | environment | what it says |",
        f"|---|---|{'---|' * len(STEPS)}---|---|",
    ]
    for row in rows:
        python, torch = row.get("versions", (row["python"], row["torch"]))
        cells = [str(row.get("seconds", {}).get(step, "")) for step in STEPS]
        said = "; ".join(row[key] for key in ("skipped", "plan", "note") if key in row)
        if "failed" in row:
            said = f"**{row['failed']['step']}**: {row['failed']['said']}"
        size = f"{row['environment_gb']} GB" if "environment_gb" in row else ""
        lines.append(f"| {python} | {torch} | {' | '.join(cells)} | {size} | {said} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Try every pair that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pythons", nargs="+", default=["3.10", "3.11", "3.12", "3.13"])
    parser.add_argument("--torch", nargs="+", default=["2.8.0", NEWEST])
    parser.add_argument("--page", action="store_true", help="write the page alone")
    parser.add_argument("--keep", type=Path, help="make environments here, and leave them there")
    asked = parser.parse_args()
    record = RESULTS / "packaging.json"
    old = json.loads(record.read_text(encoding="utf-8"))["rows"] if record.exists() else []
    rows = {(row["python"], row["torch"]): row for row in old}

    def write() -> None:
        ordered = [rows[key] for key in sorted(rows, key=lambda key: (int(key[0][2:]), key[1]))]
        about = {"command": "python -m tools.packaging", "machine": platform.machine()}
        text = json.dumps({**about, "rows": ordered}, indent=1) + "\n"
        record.write_text(text, encoding="utf-8")
        record.with_suffix(".md").write_text(page(ordered), encoding="utf-8")

    if asked.page:
        write()
        return
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "built"
        run(sys.executable, "-m", "build", "-o", built, ROOT, folder=Path(folder))
        for version in asked.pythons:
            for torch in asked.torch:
                row: dict[str, Any] = {"python": version, "torch": torch}
                python = find_python(version)
                if python is None:
                    row["skipped"] = "no interpreter of this version here, and none to download"
                else:
                    place = (asked.keep or Path(folder)).resolve() / f"{version}-{torch}"
                    place.mkdir(parents=True, exist_ok=True)
                    row |= try_pair(python, torch, built, place)
                    if asked.keep is None:
                        shutil.rmtree(place)
                rows[version, torch] = row
                write()


if __name__ == "__main__":
    main()
