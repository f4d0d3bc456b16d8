"""The pictures of reports in docs/pictures: three verdicts on the demo's model, in a real browser.

    python -m tools.report_pictures

Runs the demo (two minutes), lets a thief work on a copy, and calls the command line for a report on
the copy, on a stranger's model, and on a file that holds something else. Needs Chromium.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import torch
from typer.testing import CliRunner

from passportize.cli.application import application
from passportize.demo.recipe import build_model
from passportize.release.checkpoint import load_weights, save_weights
from tests.support import ROOT
from tests.support.browser import measure, take_picture

PICTURES = ROOT / "docs" / "pictures"
WIDTHS = {"wide": 1280, "narrow": 390}


def call(*arguments: str, code: int = 0) -> None:
    """One command of passportize, which must end with this exit code."""
    result = CliRunner().invoke(application(), list(arguments))
    if result.exit_code != code:
        raise SystemExit(f"{arguments}: {result.exit_code}\n{result.output}{result.stderr}")


def suspects() -> dict[str, int]:
    """Files to be judged, and the exit code of each."""
    torch.manual_seed(0)
    weights = load_weights("demo/released.safetensors")
    for tensor in weights.values():
        if tensor.dim() > 1:
            tensor += 0.1 * tensor.std() * torch.randn_like(tensor)
            tensor[tensor.abs() < tensor.abs().median() / 4] = 0
    save_weights("copy.safetensors", weights)
    save_weights("unrelated.safetensors", build_model(seed=7).state_dict())
    save_weights("embeddings.safetensors", {"tokens": torch.zeros(100, 12)})
    return {"copy": 0, "unrelated": 1, "embeddings": 2}


def main() -> None:
    """Make all pictures anew."""
    names = {"copy": "accepted", "unrelated": "refused", "embeddings": "open"}
    with (
        tempfile.TemporaryDirectory() as folder,
        torch.random.fork_rng(),
        contextlib.chdir(folder),
    ):
        call("demo", "-o", "demo")
        for suspect, code in suspects().items():
            owner = ("--passport", "demo/acme.passport")
            claim = ("--claim", "demo/acme.claim.safetensors")
            data: tuple[str, ...] = ()
            if code < 2:
                model = ("--model", "passportize.demo.recipe:build_model")
                data = (*model, "--arg", "seed=0", "--data", "digits")
            line = ("verify", f"{suspect}.safetensors", *owner, *claim, *data)
            call(*line, "--report", f"{suspect}.html", code=code)
        for suspect, name in names.items():
            page = Path(f"{suspect}.html").read_text(encoding="utf-8")
            for size, width in WIDTHS.items():
                height = measure([(page, width)])[0]["height"]
                for dark in (False, True):
                    scheme = "dark" if dark else "light"
                    file = PICTURES / f"report_{name}_{size}_{scheme}.png"
                    take_picture(page, file, width, height, dark=dark)


if __name__ == "__main__":
    main()
