"""What each page takes for granted: a folder that its reader has by then, and names."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from typer.testing import CliRunner

import passportize as pp
from passportize.attacks import permute_channels
from passportize.cli.application import application
from passportize.passport.file import PASSPHRASE
from passportize.release.checkpoint import load_weights, save_weights
from passportize.release.claim_file import write_claim
from tests.support import ROOT
from tests.support.pages import AUTHORITY, Reader
from tests.support.striped_pictures import write_pictures

__all__ = ["SETTINGS", "WORDS", "Setting", "make_kit"]

WORDS = "correct horse battery staple"
SCRIPT = ROOT / "tests/integrations/train_scripts/train_on_pictures.py"
SHORT = ("--num-classes", "4", "--img-size", "32", "--epochs", "1")
"""The tests' train.py takes these whatever the page says: a short training."""


def call(*arguments: str) -> None:
    """One command of passportize, which has to be accepted or done."""
    os.environ[PASSPHRASE] = WORDS
    result = CliRunner().invoke(application(), list(arguments))
    assert result.exit_code == 0, (arguments, result.output, result.stderr)


def make_kit() -> None:
    """Write into the current folder: pictures, a release, a thief's file, an opponent's files."""
    write_pictures(Path("data"))
    shutil.copytree("data", "imagenet")
    Path("train.py").write_text(
        f"import runpy, sys\nsys.argv += {list(SHORT)}\n"
        # A small model, too, where the page has no weights of its own.
        "if '--initial-checkpoint' not in sys.argv:\n    sys.argv += ['--model', 'test_resnet']\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    )
    passport = pp.Passport.generate("Acme Vision", contact="legal@acme.example")
    passport.save("acme.passport", passphrase=WORDS)
    train = ("train.py", "--data-dir", "data", "--experiment", "acme")
    call("timm-train", "--passport", "acme.passport", *train)
    best = "output/train/acme/model_best.pth.tar"
    call("release", best, "--passport", "acme.passport", "--data", "data/val", "-o", "release")
    Path("tsa-roots.pem").write_bytes(AUTHORITY.roots_pem())
    request = Path("release/1-commit/commitment.json")
    Path("answer").write_bytes(AUTHORITY.response(request.read_bytes()))
    call("commit", "-o", str(request), "--add-token", "answer", "--tsa-roots", "tsa-roots.pem")
    released = load_weights("release/2-publish/model.safetensors")
    torch.save(released, "suspect.pth")
    theirs = timm.create_model("test_resnet", num_classes=4)
    theirs.load_state_dict(released)
    mallory = pp.Passport.generate("Mallory")
    mallory.save("their.passport")
    pp.passportize(theirs, mallory, config=pp.PassportConfig.signature())
    pp.embed_signature(theirs, calibration=[torch.randn(8, 3, 32, 32)])
    pp.save_claim(theirs, "their.claim.safetensors")
    save_weights("their.safetensors", pp.unpassportize(theirs).state_dict())


def disguised(released: str) -> None:
    """A thief's work on what the quickstart released."""
    shell = timm.create_model(
        "resnet10t", in_chans=1, num_classes=10, stem_width=16, channels=(16, 32, 64, 128)
    )
    shell.load_state_dict(torch.load(released))
    permute_channels(shell, example_inputs=torch.zeros(2, 1, 16, 16))
    torch.save(shell.state_dict(), "suspect.pth")


@dataclass
class Setting:
    """What a page takes for granted, beside the kit.

    Attributes:
        names: Made anew for the Python blocks of the page.
        gone: Files of the kit that the page makes itself.
        before: What has happened by the time that the block of this number is read.
        after: Looks at what came of it.
    """

    names: Callable[[], dict[str, Any]] = dict
    gone: tuple[str, ...] = ()
    before: dict[int, Callable[[Reader], object]] = field(default_factory=dict)
    after: Callable[[Reader], object] = lambda reader: None
    words: str = WORDS


def readme_names() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    loader = [(torch.randn(4, 3, 32, 32, generator=generator), torch.arange(4)) for _ in range(2)]
    return {"train_loader": loader, "test_loader": loader}


def readme_suspect(reader: Reader) -> None:
    model = reader.names["model"]
    assert not any(isinstance(module, pp.PassportLayer) for module in model.modules())
    reader.names["suspect"] = model


def readme_commands(reader: Reader) -> None:
    Path("acme.passport").unlink()


def a_copy(reader: Reader) -> None:
    torch.save(load_weights("release/2-publish/model.safetensors"), "suspect.pth")


def quickstart_after(reader: Reader) -> None:
    verdict = reader.names["verdict"]
    assert verdict.accepted and verdict.message.owner == "Acme Vision"
    assert verdict.public_accuracy > 80 and verdict.private_accuracy > 70
    assert reader.printed.count("ACCEPTED") == 2


def graphs_after(reader: Reader) -> None:
    assert bool(reader.names["loss"].total.isfinite())
    layers = [m for m in reader.names["model"].modules() if isinstance(m, pp.PassportLayer)]
    assert all(layer.passport.site.bits for layer in layers)


def own_loop() -> dict[str, Any]:
    from safetensors.torch import save_file

    model = nn.Sequential(nn.Conv2d(1, 32, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU())
    passport = pp.Passport.load("acme.passport", WORDS)
    pp.passportize(model, passport, example_inputs=torch.zeros(2, 1, 8, 8))
    pp.embed_signature(model)
    return {"pp": pp, "model": model, "save_file": save_file}


def for_timm() -> dict[str, Any]:
    return {
        "model": timm.create_model("test_resnet", num_classes=4),
        "passport": pp.Passport.load("acme.passport", WORDS),
        "train_loss_fn": nn.CrossEntropyLoss(),
        "device": torch.device("cpu"),
    }


def timm_own_script(reader: Reader) -> None:
    reader.names.update(for_timm())


def marking_names() -> dict[str, Any]:
    torch.manual_seed(0)
    model = timm.create_model("regnetx_002", num_classes=4).eval()
    torch.save(model.state_dict(), "weights.pth")
    shutil.copytree("data/val", "pictures", ignore=shutil.ignore_patterns("??.png", "[2-9].png"))
    return {"model": model, "images": [torch.randn(8, 3, 64, 64)]}


def marking_leak(reader: Reader) -> None:
    shutil.copy("beta.pth", "leaked.pth")


def marking_after(reader: Reader) -> None:
    assert "Beta GmbH" in str(reader.names["found"])


def suspects_names() -> dict[str, Any]:
    from benchmarks.suspects import framework_makers, tflite_makers
    from tests.support.found_files import EXAMPLE, OWNER, marked, quiet

    model, claim = marked()
    OWNER.save("acme.passport", passphrase=WORDS)
    write_claim(claim, "acme.claim.safetensors")
    for name in ("app/assets", "found"):
        Path(name).mkdir(parents=True)
    tflite_makers.written_float(model, EXAMPLE, Path("app/assets"))
    with quiet():
        made = framework_makers.onnx_scripted(model, EXAMPLE, Path("found"))
    made.rename("found/model.onnx")
    return {"passport": OWNER, "claim": claim}


def point_clouds_names() -> dict[str, Any]:
    from examples.pointnet_model import PointNet

    return {"PointNet": PointNet, "clouds": torch.randn(8, 32, 3)}


SETTINGS = {
    "CONTRIBUTING.md": Setting(),
    "README.md": Setting(
        readme_names,
        gone=("acme.passport", "release", "output"),
        before={1: readme_suspect, 3: readme_commands, 4: a_copy},
    ),
    "docs/adapters.md": Setting(),
    "docs/graphs.md": Setting(after=graphs_after),
    "docs/how_to/a_copy_turned_up.md": Setting(),
    "docs/how_to/release.md": Setting(own_loop, gone=("release",)),
    "docs/how_to/two_parties_argue.md": Setting(),
    "docs/marking.md": Setting(marking_names, before={4: marking_leak}, after=marking_after),
    "docs/point_clouds.md": Setting(point_clouds_names),
    "docs/quickstart.md": Setting(
        gone=("acme.passport",),
        before={5: lambda reader: disguised("released.pth")},
        after=quickstart_after,
        words="a long sentence that you remember",
    ),
    "docs/suspects.md": Setting(suspects_names, gone=("acme.passport",)),
    "docs/timm.md": Setting(
        gone=("acme.passport", "release", "output"), before={4: timm_own_script}
    ),
    "tests/README.md": Setting(),
}
