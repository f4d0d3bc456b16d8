"""What goes to the hub: timm makes the same model of it, and its card helps no thief."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import passportize as pp
from passportize.cli.application import application
from passportize.errors import InvalidArgument
from passportize.release.audit_files import audit_files
from passportize.release.exporting import export
from passportize.release.notice import Notice
from passportize.release.preprocessing import Preprocessing

timm = pytest.importorskip("timm")
testing = pytest.importorskip("typer.testing")

PASSPORT = pp.Passport.generate("Acme Vision", date="2026-11-28", secret=bytes(range(32)))
MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


def made(name: str, **settings: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5, **settings)


def checkpoint_of(folder: Path, name: str, size: int, claim: bool = True, **settings: Any):
    """A training checkpoint as timm's script writes it, and the plain model in it."""
    model = pp.passportize(made(name, **settings), PASSPORT)
    pp.embed_signature(model)
    arguments = argparse.Namespace(
        model=name,
        num_classes=5,
        img_size=size,
        mean=MEAN,
        std=STD,
        interpolation="bilinear",
        crop_pct=0.9,
        model_kwargs=settings,
    )
    path = folder / "last.pth.tar"
    torch.save({"state_dict": model.state_dict(), "arch": name, "args": arguments}, path)
    digest = pp.save_claim(model, folder / "claim").digest()
    return path, pp.unpassportize(model).eval(), digest


def export_by_command(*line: str) -> tuple[int, str]:
    done = testing.CliRunner().invoke(application(), ["export", *line])
    return done.exit_code, done.output + done.stderr


@pytest.mark.parametrize(
    ("name", "size", "settings"), [("test_resnet", 96, {}), ("test_vit", 64, {"img_size": 64})]
)
def test_timm_makes_the_same_model_of_it(
    tmp_path: Path, name: str, size: int, settings: dict[str, Any]
) -> None:
    path, plain, digest = checkpoint_of(tmp_path, name, size, **settings)
    out = tmp_path / "out"
    options = ("--to", "hf", "--claim", str(tmp_path / "claim"), "--contact", "ask@acme.example")
    code, told = export_by_command(str(path), str(out), *options)
    assert code == 0, told
    assert {file.name for file in out.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
    }
    loaded = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(loaded(x), plain(x))
    config = timm.data.resolve_model_data_config(loaded)
    assert config["input_size"] == (3, size, size) and config["crop_pct"] == 0.9
    assert (tuple(config["mean"]), tuple(config["std"])) == (MEAN, STD)
    assert config["interpolation"] == "bilinear"
    assert audit_files(out)

    card = (out / "README.md").read_text(encoding="utf-8")
    assert digest in card and "ask@acme.example" in card and "marked" in card
    assert hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest() in card
    everything = (card + (out / "config.json").read_text()).lower()
    sites = pp.load_claim(tmp_path / "claim").sites
    marked = [part.weight for site in sites if site.anchor for part in site.anchor.parts]
    assert marked and not any(key in everything for key in [*marked, *(s.name for s in sites)])
    telling = ("passport", "keyed", "signature", "private", "branch", "bits", "layer", "norm1")
    assert not any(word in everything for word in telling)
    for secret in (bytes(range(32)), PASSPORT.reading_key):
        assert secret.hex() not in everything
    assert PASSPORT.commitment() not in everything and PASSPORT.owner.lower() not in everything


def test_the_card_says_nothing_of_the_mark_unless_asked(tmp_path: Path) -> None:
    path, _, digest = checkpoint_of(tmp_path, "test_resnet", 96)
    assert export_by_command(str(path), str(tmp_path / "out"), "--to", "hf")[0] == 0
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "marked" not in card and digest not in card and "## Use" in card
    line = (str(path), str(tmp_path / "other"), "--to", "hf", "--img-size", "80")
    assert export_by_command(*line)[0] == 0
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [3, 80, 80]


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    path, _, _ = checkpoint_of(tmp_path, "test_resnet", 96)
    (tmp_path / "sub").mkdir()
    torch.manual_seed(1)
    other = pp.passportize(timm.create_model("test_resnet", num_classes=5), PASSPORT)
    pp.embed_signature(other)
    pp.save_claim(other, tmp_path / "sub" / "claim")
    for extra, match in (
        (("--to", "hf", "--claim", str(tmp_path / "sub" / "claim")), "other weights"),
        (("--to", "hf", "--claim", str(path)), "no claim"),
        (("--contact", "me"), "go with --to hf"),
        (("--to", "onnx", "--img-size", "64"), "go with --to hf"),
        (("--to", "hf", "--contact", "two\nlines"), "one line"),
    ):
        code, told = export_by_command(str(path), str(tmp_path / "out"), *extra)
        assert code == 2 and match in " ".join(told.split()), told
        assert not (tmp_path / "out").exists()


def test_the_same_from_a_live_model(tmp_path: Path) -> None:
    plain = made("test_resnet").eval()
    prepared = Preprocessing((3, 96, 96), MEAN, STD)
    notice = Notice(digest="ab" * 32)
    export(plain, tmp_path / "out", to="hf", preprocessing=prepared, notice=notice)
    loaded = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(loaded(torch.ones(1, 3, 96, 96)), plain(torch.ones(1, 3, 96, 96)))
    assert notice.to_markdown() in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    with pytest.raises(InvalidArgument, match="64 hex digits"):
        Notice(digest="ab" * 31)
