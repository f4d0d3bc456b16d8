"""Trained weights marked on the command line, copies for licensees, and whose copy leaked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("timm")
import timm
from PIL import Image

import passportize as pp
from passportize.cli.application import application
from passportize.release.checkpoint import load_weights, save_weights
from passportize.training.refitting import change_by_inputs

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
RUNNER = CliRunner()
MODEL = ("--model", "test_resnet", "--num-classes", "4", "--arg", "pretrained=False")


def run(*arguments: object) -> tuple[int, str]:
    result = RUNNER.invoke(application(), [str(each) for each in arguments])
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("marking")
    generator = torch.Generator().manual_seed(0)
    for kind in range(4):
        (folder / "data" / "abcd"[kind]).mkdir(parents=True)
        for number in range(8):
            pixels = torch.rand(3, 60, 60, generator=generator) * 120
            pixels[kind % 3, :, :: 4 * (1 + kind // 3)] += 120
            image = Image.fromarray(pixels.permute(1, 2, 0).byte().numpy())
            image.save(folder / "data" / "abcd"[kind] / f"{number}.png")
    torch.manual_seed(0)
    save_weights(
        folder / "trained.safetensors", timm.create_model("test_resnet", num_classes=4).state_dict()
    )
    pp.Passport.generate("Acme", date="2026-11-28", secret=bytes(range(32))).save(
        folder / "acme.passport"
    )
    (folder / "licensees.txt").write_text("Beta GmbH\nGamma Ltd\n\nDelta SA\n", encoding="utf-8")
    return folder


def test_the_whole_way(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    data = ("--data", "data", "--images", "16", "--batch-size", "8")
    own = ("--passport", "acme.passport")
    code, text = run(
        *("mark", "trained.safetensors", *own, *data, *MODEL, "--bits", 200, "--img-size", 64),
        *("--claim", "acme.claim", "--out", "marked.safetensors"),
        *("--inputs", "acme.inputs", "--json"),
    )
    record = json.loads(text)
    assert code == 0 and record["bits"] == record["by_output"] == 200
    assert record["strength"] > 190
    # The bits are in the file, and all but the weights of bound layers and what follows is as was.
    code, text = run("verify", "marked.safetensors", *own, "--claim", "acme.claim")
    assert code == 0 and "200 of 200 bits" in text
    before, after = (
        load_weights(Path("trained.safetensors")),
        load_weights(Path("marked.safetensors")),
    )
    assert list(before) == list(after) or set(before) == set(after)
    assert torch.equal(before["fc.weight"], after["fc.weight"])

    code, text = run(
        *("mark-copy", "marked.safetensors", "Beta GmbH", *own, *data, *MODEL),
        *("--claim", "acme.claim", "--out", "beta.safetensors"),
    )
    assert code == 0 and "copy of Beta GmbH" in text
    code, text = run(
        *("identify", "beta.safetensors", *own, "--claim", "acme.claim"),
        *("--licensees", "licensees.txt", "--released", "marked.safetensors"),
    )
    assert code == 0 and "NAMED  Beta GmbH" in text and "3 asked" in text
    code, text = run(
        *("identify", "marked.safetensors", *own, "--claim", "acme.claim"),
        *("--licensees", "licensees.txt", "--json"),
    )
    assert code == 1 and json.loads(text)["named"] == []

    # Nothing is replaced.
    code, text = run("mark", "trained.safetensors", *own, *data, *MODEL, "--claim", "acme.claim")
    assert code == 2 and "exists already" in text


def covered(rows: torch.Tensor, moment: torch.Tensor) -> torch.Tensor:
    """Rows with a lot of noise in directions that their inputs do not use."""
    sizes, directions = torch.linalg.eigh(moment)
    unused = directions[:, sizes < 1e-6 * sizes.max()]
    noise = torch.randn(len(rows), unused.shape[1], dtype=rows.dtype)
    size = 3 * rows.norm() / noise.norm().clamp_min(1e-9)
    return rows + size * noise @ unused.T


def test_noise_that_the_network_does_not_feel(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It hides the mark, and what was looked at is kept and brings it back."""
    monkeypatch.chdir(place)
    own = ("--passport", "acme.passport")
    code, _ = run(
        *("mark", "trained.safetensors", *own, "--data", "data", "--images", "16", *MODEL),
        *("--bits", 200, "--img-size", 64, "--out", "noisy.safetensors", "--claim", "noisy.claim"),
        *("--inputs", "noisy.inputs", "--output-share", 0.05),
    )
    batches = pp.load_inputs("noisy.inputs")
    assert code == 0 and sum(len(batch) for batch in batches) == 16
    suspect = timm.create_model("test_resnet", num_classes=4)
    suspect.load_state_dict(load_weights(Path("noisy.safetensors")))
    suspect.eval()
    before = suspect(batches[0]).detach()
    change_by_inputs(suspect, batches, covered, 9)
    torch.testing.assert_close(suspect(batches[0]).detach(), before, atol=3e-2, rtol=3e-2)
    save_weights("noisy.safetensors", suspect.state_dict(), overwrite=True)
    asked = ("verify", "noisy.safetensors", *own, "--claim", "noisy.claim")
    code, text = run(*asked)
    assert code == 1 and "fitted" not in text
    code, text = run(*asked, "--inputs", "noisy.inputs", *MODEL)
    assert code == 0 and "fitted anew to what they compute on the owner's inputs" in text
    code, text = run(*asked, "--inputs", "noisy.inputs")
    assert code == 2 and "--inputs needs --claim, which names it, and --model" in text
    code, text = run(*asked, "--inputs", "acme.passport", *MODEL)
    assert code == 2 and "no file of inputs" in text


def test_weights_of_another_model(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    code, text = run(
        *("mark", "trained.safetensors", "--passport", "acme.passport", "--data", "data"),
        *("--model", "test_vit", "--claim", "other.claim", "--out", "other.safetensors"),
        *("--inputs", "other.inputs"),
    )
    assert code == 2 and "does not fit" in text
    assert not Path("other.claim").exists() and not Path("other.safetensors").exists()
