"""The owner's day with timm's real ``train.py``: from a key to an arbitration, commands alone.

    git clone https://github.com/huggingface/pytorch-image-models
    python -m benchmarks.train_scripts.day --timm-source pytorch-image-models
    python -m benchmarks.train_scripts.day --report    # the page alone

Pictures are the handwritten digits of scikit-learn as PNG files in folders, the model is timm's
resnet18 at 32 pixels, the script that of the clone's newest commit. A thief prunes and shakes the
released weights and then fine-tunes them with a passport of their own. Every command, its exit code
and what it said go to ``results/day.json``, the page is ``results/day.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image

from benchmarks.common.paths import RESULTS, ROOT
from passportize.data.digits import load_digits_images
from passportize.release.checkpoint import load_weights, save_weights

RESULT, PAGE = RESULTS / "day.json", RESULTS / "day.md"
TRAIN = (
    *("train.py", "--data-dir", "data", "--model", "resnet18", "--num-classes", "10"),
    *("--img-size", "32", "--mean", "0.5", "0.5", "0.5", "--std", "0.5", "0.5", "0.5"),
    *("--crop-pct", "1.0", "--batch-size", "64", "--workers", "0", "--opt", "sgd", "--no-aug"),
    *("--momentum", "0.9", "--sched", "cosine", "--warmup-epochs", "0", "--no-prefetcher"),
    *("--device", "cpu", "--output", "output"),
)
OWNER = ("--passport", "acme.passport", "--claim", "release/keep/claim.safetensors")
WEIGHTS, MODEL = "release/2-publish/model.safetensors", "local-dir:release/2-publish"
DATA = ("--model", MODEL, "--data", "data/val")


class Day:
    """A folder, and what was said in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[dict[str, Any]] = []

    def line(self, words: str) -> None:
        """One command, as it is typed."""
        self.call(*shlex.split(words))

    def call(self, *words: str, code: int = 0) -> dict[str, Any]:
        """One command; its JSON, if it prints any."""
        module = ("-m", "passportize", *words[1:]) if words[0] == "passportize" else words[1:]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        before = time.monotonic()
        done = subprocess.run(
            [sys.executable, *module],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        seconds = round(time.monotonic() - before, 1)
        print(f"{done.returncode}  {seconds:6.1f} s  {shlex.join(words)}", flush=True)
        if done.returncode != code:
            raise SystemExit(done.stdout[-3000:] + done.stderr[-3000:])
        record: dict[str, Any] = json.loads(done.stdout) if "--json" in words else {}
        claimed = [line for line in done.stderr.splitlines() if "is the claim on" in line]
        self.said.append(
            {
                "command": shlex.join(words),
                "code": done.returncode,
                "seconds": seconds,
                "said": {key: value for key, value in record.items() if key in KEPT},
                "log": claimed[0].partition("Passport: ")[2] if claimed else "",
            }
        )
        return record


KEPT = (
    *("matched", "total", "strength", "accepted", "same_weights", "averaged", "owner", "clean"),
    *("public_accuracy", "private_accuracy", "fidelity", "samples", "bits", "reason"),
)


def pictures(folder: Path) -> None:
    """The digits as PNG files, one folder for each class."""
    for split, name in (("train", "train"), ("test", "val")):
        images, labels = load_digits_images(split)
        pixels = (images - images.min()) / (images.max() - images.min()) * 255
        for index, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
            place = folder / name / str(label)
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].byte().numpy()).resize((32, 32)).convert("RGB").save(
                place / f"{index}.png"
            )


def tamper(folder: Path) -> None:
    """A third of the small weights gone, and noise of a tenth of each layer's spread."""
    torch.manual_seed(0)
    weights = load_weights(folder / WEIGHTS)
    for tensor in weights.values():
        if tensor.dim() > 1:
            tensor[tensor.abs() < tensor.abs().flatten().kthvalue(tensor.numel() // 3)[0]] = 0
            tensor += 0.1 * tensor.std() * torch.randn_like(tensor)
    save_weights(folder / "copy.safetensors", {f"net.{k}": v for k, v in weights.items()})
    torch.save({"state_dict": weights}, folder / "copy.pth")


def run(folder: Path) -> list[dict[str, Any]]:
    """The day."""
    day = Day(folder)
    best = "output/{}/model_best.pth.tar".format
    day.call("python", *TRAIN, "--epochs", "3", "--lr", "0.05", "--experiment", "pretrained")
    day.line("passportize keygen Acme --no-passphrase -o acme.passport --json")
    day.line("passportize plan resnet18 --num-classes 10 --json")
    launch = ("passportize", "timm-train", "--passport")
    start = ("--initial-checkpoint", best("pretrained"))
    day.call(
        *(*launch, "acme.passport", "--claim", "best.claim", *TRAIN, *start, "--epochs", "6"),
        *("--lr", "0.02", "--model-ema", "--model-ema-decay", "0.9", "--experiment", "protected"),
    )
    day.call(
        *("passportize", "release", best("protected"), "--passport", "acme.passport", "--claim"),
        *("best.claim", "--data", "data/val", "-o", "release", "--json"),
    )
    day.line("passportize audit release/2-publish --json")
    day.call("passportize", "verify", WEIGHTS, *OWNER, *DATA, "--json")
    tamper(folder)
    report = ("--report", "verdict.html", "--json")
    day.call("passportize", "verify", "copy.safetensors", *OWNER, *DATA, *report)
    day.line("passportize keygen Mallory --no-passphrase -o mallory.passport --json")
    day.call(
        *(*launch, "mallory.passport", *TRAIN, "--initial-checkpoint", "copy.pth", "--epochs"),
        *("2", "--lr", "0.01", "--experiment", "stolen"),
    )
    day.call(
        *("passportize", "release", best("stolen"), "--passport", "mallory.passport"),
        *("-o", "mallory", "--json"),
    )
    day.call(
        *("passportize", "arbitrate", "--first-passport", OWNER[1], "--first-claim", OWNER[3]),
        *("--first-weights", WEIGHTS, "--second-passport", "mallory.passport"),
        *("--second-claim", "mallory/keep/claim.safetensors"),
        *("--second-weights", "mallory/2-publish/model.safetensors", "--json"),
    )
    return day.said


def page(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        "# The whole day with timm's real train.py",
        "",
        f"Made by `{result['command']}`: {result['script']} with timm {result['timm']}, torch "
        f"{result['torch']}, one thread of {result['machine']}, other work beside it. The data "
        "are the handwritten digits of scikit-learn as PNG files.",
        "",
        "| command | exit code | s | said |",
        "|---|---|---|---|",
    ]
    for row in result["rows"]:
        said = "; ".join(
            f"{key} {_short(value)}" for key, value in row["said"].items() if value is not None
        )
        lines.append(
            f"| `{row['command']}` | {row['code']} | {row['seconds']} | {said or row['log']} |"
        )
    return "\n".join([*lines, ""])


def _short(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def main() -> None:
    """Run the day and write what was said."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timm-source", type=Path, help="a clone of timm")
    parser.add_argument("--report", action="store_true", help="write the page alone")
    options = parser.parse_args()
    if options.report:
        PAGE.write_text(page(json.loads(RESULT.read_text(encoding="utf-8"))), encoding="utf-8")
        return
    if options.timm_source is None:
        parser.error("give a clone of timm with --timm-source")
    source = options.timm_source
    git = ("git", "-C", str(source))
    commit = subprocess.run(
        [*git, "rev-parse", "--short=8", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    script = subprocess.run([*git, "show", "HEAD:train.py"], check=True, capture_output=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "train.py").write_bytes(script.stdout)
        pictures(folder / "data")
        rows = run(folder)
    result = {
        "command": "python -m benchmarks.train_scripts.day --timm-source CLONE",
        "script": f"train.py of main {commit}",
        "timm": timm.__version__,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "rows": rows,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(result), encoding="utf-8")


if __name__ == "__main__":
    main()
