"""How many bits are read from a model in each kind of file, how long it takes, how much memory.

Every bound row of a timm model with fresh weights gets its signature bit; norms get factors and
statistics as after training, so that exporters have something to fold. The plain model goes through
the exporter of each kind, plain, in half precision and with eight bits where the format has them,
and ``verify`` reads the file with passport and claim, without a model and without data. Each file
is written and read in a process of its own; memory is what reading added to it.

    python -m benchmarks.suspects.kinds            # writes results/suspect_kinds.json and .md
    python -m benchmarks.suspects.kinds --litert litert/bin/python    # TensorFlow Lite by LiteRT
    python -m benchmarks.suspects.kinds --report   # the page alone
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import passportize as pp
from benchmarks.common.paths import RESULTS
from benchmarks.pages.markdown import table
from benchmarks.suspects.kinds_made import MADE
from benchmarks.suspects.torch_makers import Maker
from passportize.errors import PassportizeError
from passportize.release.claim import Claim, claim_of
from passportize.suspects.reading import read_suspect
from passportize.utils.files import write_atomically

OWNER = pp.Passport.generate("Acme", date="2026-01-01", secret=(2**200).to_bytes(32, "big"))
MODELS = ("resnet18", "vit_tiny_patch16_224", "mobilenetv3_small_100")
PRECISIONS = ("plain", "half", "int8")
SIDE = 224


def marked(name: str) -> tuple[nn.Module, Claim]:
    """A plain model with every bit in its weights, and its claim."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10)
    model = pp.passportize(model, OWNER, config=pp.PassportConfig.signature())
    pp.embed_signature(model)
    for layer in model.modules():
        if isinstance(layer, (nn.BatchNorm2d, nn.LayerNorm)):
            # Some factors negative, as training leaves them; none zero, as timm starts blocks.
            nn.init.uniform_(layer.weight, -1.5, 1.5)
            nn.init.normal_(layer.bias, std=0.1)
        if isinstance(layer, nn.BatchNorm2d):
            for buffer, draw in (
                (layer.running_mean, (-0.1, 0.1)),
                (layer.running_var, (0.5, 2.0)),
            ):
                if buffer is not None:
                    nn.init.uniform_(buffer, *draw)
    claim = claim_of(model)
    pp.unpassportize(model)
    return model.eval().requires_grad_(False), claim


def apart(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a function gives in a process of its own, whose output is dropped."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        logging.disable()
        warnings.simplefilter("ignore")
        try:
            answer = work()
        except BaseException as error:
            answer = {"failed": f"{type(error).__name__}: {str(error).partition(chr(10))[0][:160]}"}
        with os.fdopen(writing, "w") as stream:
            json.dump(answer, stream)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        text = stream.read()
    os.waitpid(child, 0)
    return dict(json.loads(text)) if text else {"failed": "the process ended without an answer"}


def write(maker: Maker, model: nn.Module, example: Tensor, folder: Path) -> dict[str, Any]:
    """Write one file in a process of its own."""
    return apart(lambda: {"path": str(maker(model, example, folder))})


def read(path: str, claim: Claim) -> dict[str, Any]:
    """Read the bits of one file."""

    def work() -> dict[str, Any]:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        kind = ""
        try:
            opened = read_suspect(path)
            kind = opened.kind
            verdict = pp.verify(opened, OWNER, claim)
            found = {
                "accepted": verdict.accepted,
                "matched": verdict.matched,
                "total": verdict.total,
                "strength": round(verdict.strength, 1),
                "matched_by": verdict.matched_by,
            }
        except PassportizeError as error:
            found = {"refused": f"{type(error).__name__}: {error}"}
        seconds = time.perf_counter() - start
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        return {
            "read_as": kind,
            **found,
            "seconds": round(seconds, 2),
            "megabytes": round(memory / 1024),
        }

    return apart(work)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def converted_by_litert(python: str, name: str, model: nn.Module, folder: Path) -> dict[str, Path]:
    """TensorFlow Lite files of a model by precision, made by LiteRT in its own environment."""
    torch.save(model.state_dict(), folder / "weights.pt")
    script = Path(__file__).with_name("litert_convert.py")
    subprocess.run(
        [python, str(script), name, str(folder / "weights.pt"), str(folder)],
        check=True,
        capture_output=True,
    )
    return {precision: folder / f"{precision}.tflite" for precision in PRECISIONS}


def measure(name: str, litert: str | None) -> list[dict[str, Any]]:
    """All rows of one model."""
    model, claim = marked(name)
    # One read ahead, so that no row pays for libraries that are loaded at first use.
    pp.verify(model, OWNER, claim)
    example = torch.zeros(1, 3, SIDE, SIDE)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        lite = Path(scratch, "litert")
        lite.mkdir()
        ready = converted_by_litert(litert, name, model, lite) if litert else {}
        for kind, makers in MADE.items():
            for precision, maker in makers.items():
                folder = Path(scratch, f"{len(rows)}")
                folder.mkdir()
                by_litert = kind == "TensorFlow Lite" and bool(ready)
                made = (
                    {"path": str(ready[precision])}
                    if by_litert
                    else write(maker, model, example, folder)
                )
                row: dict[str, Any] = {"model": name, "kind": kind, "precision": precision}
                if "failed" in made:
                    row["exporter"] = made["failed"]
                else:
                    row["file_megabytes"] = round(size_of(Path(made["path"])) / 1e6, 1)
                    row |= read(made["path"], claim)
                    for text in ("refused", "failed"):
                        if text in row:
                            row[text] = row[text].replace(made["path"], Path(made["path"]).name)
                if by_litert:
                    row["made_by"] = "LiteRT"
                row["bits"] = claim.marking.layout.bits
                rows.append(row)
                print(json.dumps(row), flush=True)
    return rows


def _cell(row: dict[str, Any]) -> str:
    if "exporter" in row:
        return "no exporter"
    if "refused" in row or "failed" in row:
        return "refused" if "refused" in row else "fault"
    return f"{row['matched']:,} of {row['total']:,}, {row['seconds']:.2f} s, {row['megabytes']} MB"


def page(record: dict[str, Any]) -> str:
    """The table of all kinds, and below it the cells that are words."""
    rows: list[dict[str, Any]] = record["rows"]
    found = {(row["kind"], row["precision"], row["model"]): row for row in rows}
    named = dict.fromkeys((row["kind"], row["precision"]) for row in rows)
    models = list(dict.fromkeys(row["model"] for row in rows))
    bits = {row["model"]: row["bits"] for row in rows}
    body = [
        [kind, precision, *(_cell(found[kind, precision, model]) for model in models)]
        for kind, precision in named
    ]
    notes = [
        f"- {row['kind']}, {row['precision']}, {row['model']}: "
        + row.get("refused", row.get("failed", f"the exporter stops ({row.get('exporter')})"))
        for row in rows
        if "matched" not in row
    ]
    read_rows = [row for row in rows if "matched" in row]
    whole = sum(row["total"] == row["bits"] for row in read_rows)
    accepted = sum(row["accepted"] is True for row in read_rows)
    return "\n".join(
        [
            "# A signature in every kind of file",
            "",
            __doc__.split("\n\n", 2)[1].replace("\n", " "),
            "",
            f"{len(rows)} files of {len({row['kind'] for row in rows})} kinds: of {whole} all bits "
            f"are read, {accepted} are accepted, {len(rows) - len(read_rows)} have no row of bits. "
            "Cells: bits that match of those that were read, seconds, memory beyond that of the "
            "process. Bits of the models: "
            + ", ".join(f"{model} {bits[model]:,}" for model in models)
            + ".",
            "",
            f"`{record['command']}` on {record['machine']}, torch {record['torch']}, one thread. "
            f"TensorFlow Lite: {record['tflite']}.",
            "",
            table(["kind", "precision", *models], body),
            "",
            *(["What has no row of bits:", "", *notes, ""] if notes else []),
        ]
    )


def main() -> None:
    """Measure, and write the record and its page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--litert", help="a Python that has litert-torch and timm")
    parser.add_argument("--out", type=Path, default=RESULTS / "suspect_kinds.json")
    parser.add_argument("--report", action="store_true", help="write the page alone")
    options = parser.parse_args()
    if options.report:
        record = json.loads(options.out.read_text())
    else:
        torch.set_num_threads(1)
        rows = [row for name in options.models for row in measure(name, options.litert)]
        words = ["--litert PYTHON" if word == options.litert else word for word in sys.argv[1:]]
        record = {
            "command": " ".join(
                ["python -m benchmarks.suspects.kinds", *(w for w in words if w != "--litert")]
            ),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "torch": torch.__version__,
            "tflite": "by LiteRT" if options.litert else "written by hand, without operators",
            "rows": rows,
        }
        write_atomically(options.out, (json.dumps(record, indent=1) + "\n").encode())
    write_atomically(options.out.with_suffix(".md"), page(record).encode())


if __name__ == "__main__":
    main()
