"""Nothing is left in a restored model: the audit, and what it looks like once exported."""

from __future__ import annotations

import copy
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import passportize as pp
from passportize.errors import (
    AlreadyPassportized,
    CheckpointError,
    ExampleInputRequired,
    InvalidArgument,
    MissingExtra,
)
from passportize.layers.joint_forward import RootHooks
from passportize.layers.model import switch_of
from passportize.release.audit import is_clean
from passportize.release.exporting import FORMATS, export
from passportize.release.strip import strip_checkpoint

timm = pytest.importorskip("timm")

PASSPORT = pp.Passport.generate("Clean", date="2026-01-01", secret=bytes(range(32)))
MODELS = ("test_resnet", "test_efficientnet", "test_convnext", "test_vit")
SIZE = {"test_vit": 160}


SHORT = {"test_vit": {"depth": 1}, "test_convnext": {"depths": (1, 1, 1, 1)}}
"""Fewer of the same blocks, where every block takes ten seconds to export."""


def make(name: str, **arguments: Any) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=3, **arguments)


def image(name: str, rows: int = 4) -> Tensor:
    size = SIZE.get(name, 64)
    return torch.randn(rows, 3, size, size, generator=torch.Generator().manual_seed(1))


def trained_and_restored(name: str, **arguments: Any) -> tuple[nn.Module, nn.Module]:
    """A model that was trained with a passport, and a plain one with the same weights."""
    model = pp.passportize(make(name, **arguments), PASSPORT).train()
    loss = pp.joint_loss(model, image(name), torch.arange(4) % 3, nn.functional.cross_entropy)
    loss.total.backward()
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    for parameter in model.parameters():
        parameter.grad = None
    assert not is_clean(model)
    switch_of(model).saved = True
    restored = pp.unpassportize(model).eval()
    plain = make(name, **arguments).eval()
    plain.load_state_dict(restored.state_dict())
    return restored, plain


def saved(thing: object) -> bytes:
    stream = io.BytesIO()
    torch.save(thing, stream)
    return stream.getvalue()


@pytest.mark.parametrize("name", MODELS)
def test_a_restored_model_is_clean_and_the_files_of_its_weights_are_those_of_a_plain_one(
    name: str, tmp_path: Path
) -> None:
    restored, plain = trained_and_restored(name)
    report = is_clean(restored)
    assert report and report.saved and "clean" in str(report)
    assert b"passportize" not in saved(restored)
    weights = saved(plain.state_dict())
    assert weights == saved(copy.deepcopy(plain).state_dict()), "two plain models differ"
    assert saved(restored.state_dict()) == weights
    x = image(name)
    with torch.no_grad():
        assert torch.equal(restored(x), plain(x))
    sides = {"plain": plain, "control": copy.deepcopy(plain), "restored": restored}
    for kind in ("safetensors", "hf"):
        for side, model in sides.items():
            export(model, tmp_path / f"{side}.{kind}", to=kind)
    files = sorted(path.name for path in (tmp_path / "restored.hf").iterdir())
    assert "config.json" in files and "model.safetensors" in files
    for file in ("", *files):
        first, control, other = (
            (tmp_path / f"{side}.hf" / file if file else tmp_path / f"{side}.safetensors")
            for side in sides
        )
        assert first.read_bytes() == control.read_bytes(), "two plain models differ"
        assert first.read_bytes() == other.read_bytes()


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        prefix = archive.namelist()[0].partition("/")[0]
        return {name.removeprefix(prefix): archive.read(name) for name in archive.namelist()}


def dynamo_graphs(model: nn.Module, x: Tensor) -> list[str]:
    codes: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        codes.append(graph.code)
        return graph.forward

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(model, backend=backend)(x)
    return codes


@pytest.mark.parametrize("name", MODELS)
def test_programs_of_a_restored_model_are_those_of_a_plain_one(name: str, tmp_path: Path) -> None:
    restored, plain = trained_and_restored(name)
    control = copy.deepcopy(plain)
    x = image(name, 2)
    models = {"restored": restored, "plain": plain, "control": control}
    for side, model in models.items():
        export(model, tmp_path / f"{side}.pt2", to="torch-export", example_inputs=x)
    found, expected, twice = (members(tmp_path / f"{side}.pt2") for side in models)
    assert found.keys() == expected.keys()
    for member, content in expected.items():
        # What differs between two plain models is no trace.
        if twice[member] == content:
            assert found[member] == content, member
        assert b"passportize" not in found[member]
    assert sum(twice[member] == content for member, content in expected.items()) > 50
    loaded = torch.export.load(tmp_path / "restored.pt2").module()
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), plain(x))
    assert restored.training is False
    graphs = dynamo_graphs(restored, x)
    assert graphs and graphs == dynamo_graphs(plain, x) == dynamo_graphs(control, x)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", MODELS)
def test_onnx_of_a_restored_model_is_that_of_a_plain_one(name: str, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    restored, plain = trained_and_restored(name, **SHORT.get(name, {}))
    texts = []
    for side, model in (("control", copy.deepcopy(plain)), ("plain", plain), ("other", restored)):
        export(model, tmp_path / side, to="onnx", example_inputs=image(name, 2))
        texts.append(onnx.load(tmp_path / side).SerializeToString(deterministic=True))
    assert texts[0] == texts[1], "two plain models differ, so this compares nothing"
    assert texts[1] == texts[2]
    assert b"passportize" not in texts[2]


def test_the_audit_finds_every_kind_of_trace() -> None:
    model = pp.passportize(make("test_resnet"), PASSPORT)
    findings = "\n".join(is_clean(model).findings)
    for trace in (
        "is a PassportBatchNorm2d",
        "submodule passport is a Branch",
        "_forward_hooks holds RootHooks.finish",
        "_forward_pre_hooks holds RootHooks.begin",
        "state dict key",
        "torch.save of the model names passportize",
    ):
        assert trace in findings
    plain = Conv()
    assert is_clean(plain)
    plain.note = pp.PassportConfig.keyed()
    assert "attribute note is a PassportConfig" in str(is_clean(plain))
    hooked = Conv()
    RootHooks(switch_of(model)).put_in(hooked)
    assert not is_clean(hooked)
    unsaveable = Conv()
    unsaveable.function = lambda: None
    report = is_clean(unsaveable)
    assert report and not report.saved and "cannot be saved" in str(report)
    with pytest.raises(InvalidArgument):
        is_clean({})


@pytest.mark.parametrize("kind", FORMATS)
def test_a_passportized_model_is_never_exported(kind: str, tmp_path: Path) -> None:
    model = pp.passportize(make("test_resnet"), PASSPORT)
    with pytest.raises(AlreadyPassportized, match="unpassportize"):
        export(model, tmp_path / "out", to=kind)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_is_stripped_and_exported(tmp_path: Path) -> None:
    model = pp.passportize(make("test_resnet"), PASSPORT)
    path = tmp_path / "last.pth.tar"
    content = {"state_dict": model.state_dict(), "arch": "test_resnet", "epoch": 1}
    torch.save({**content, "optimizer": {"state": {}}}, path)
    private = len(model.state_dict()) - len(pp.host_state_dict(model))
    assert strip_checkpoint(path, tmp_path / "plain.safetensors") == private > 0
    assert strip_checkpoint(path, tmp_path / "plain.pth") == private
    make("test_resnet").load_state_dict(
        torch.load(tmp_path / "plain.pth", weights_only=True)["state_dict"]
    )
    with pytest.raises(CheckpointError, match="exists"):
        strip_checkpoint(path, tmp_path / "plain.pth")
    with pytest.raises(CheckpointError, match="no averaged weights"):
        strip_checkpoint(path, tmp_path / "ema.pth", ema=True)
    export(path, tmp_path / "weights.safetensors", to="safetensors")
    assert (tmp_path / "weights.safetensors").read_bytes() == (
        tmp_path / "plain.safetensors"
    ).read_bytes()
    export(path, tmp_path / "folder", to="hf", model=make("test_resnet"))
    assert (tmp_path / "folder" / "config.json").exists()
    with pytest.raises(CheckpointError, match="does not fit"):
        export(path, tmp_path / "other", to="hf", model=make("test_vit"))


def test_what_cannot_be_exported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidArgument, match="unknown"):
        export(Conv(), tmp_path / "x", to="tflite")
    with pytest.raises(ExampleInputRequired, match="example_inputs"):
        export(Conv(), tmp_path / "x", to="torch-export")
    with pytest.raises(InvalidArgument, match="no model of timm"):
        export(Conv(), tmp_path / "x", to="hf")
    monkeypatch.setattr("passportize.release.exporting.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="onnxscript"):
        export(Conv(), tmp_path / "x", to="onnx", example_inputs=torch.zeros(2, 3, 8, 8))
