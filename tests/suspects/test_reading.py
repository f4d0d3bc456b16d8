"""What is said of files that are not read, and how folders are looked through."""

from __future__ import annotations

import builtins
import gzip
import json
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import passportize as pp
from benchmarks.suspects import framework_makers, torch_makers
from passportize.errors import CheckpointError, MissingExtra
from passportize.suspects import read_suspect
from tests.support.found_files import EXAMPLE, OWNER, FoundNet, marked, write


def said(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_suspect(path)
    assert str(caught.value).startswith(str(path)) or "\ud800" in str(path)
    return str(caught.value)


def test_what_is_no_file_of_weights(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("hello")
    (tmp_path / "folder").mkdir()
    (tmp_path / "zipped.gz").write_bytes(gzip.compress(b"x"))
    with tarfile.open(tmp_path / "w.tar", "w") as opened:
        opened.add(tmp_path / "text", "text")
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        archive.writestr("readme", "x")
    os.mkfifo(tmp_path / "pipe")
    assert "it is empty" in said(tmp_path / "empty")
    text = said(tmp_path / "text")
    assert "no file of weights of a known kind" in text and "ONNX model" in text
    assert "this folder holds no weights" in said(tmp_path / "folder")
    assert "a packed file" in said(tmp_path / "zipped.gz") and "unpack" in said(tmp_path / "w.tar")
    assert "a zip archive" in said(tmp_path / "w.zip")
    assert "not a file" in said(tmp_path / "pipe")
    assert "no such file" in said(tmp_path / "nothing")
    assert "no such file" in said(tmp_path / ("long" * 100))
    with pytest.raises(CheckpointError):
        read_suspect(f"{tmp_path}/a\0b")


@pytest.mark.parametrize(
    ("maker", "name"),
    [
        (torch_makers.state_dict, "a zip archive"),
        (torch_makers.safetensors_file, "a safetensors file"),
        (torch_makers.old_format, "a torch checkpoint of the old format"),
        (framework_makers.npz, "a zip archive"),
        (framework_makers.onnx_scripted, "an ONNX model"),
    ],
)
def test_a_file_that_breaks_off_is_damaged(maker: Any, name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    path = write(maker, tmp_path / "made")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    message = said(path)
    assert f"this is {name}, and it is damaged" in message
    assert message.endswith("get a complete copy of it")


def test_the_kind_is_told_by_what_is_in_a_file(tmp_path: Path) -> None:
    """Never by its name."""
    path = write(torch_makers.safetensors_file, tmp_path / "made")
    wrong = path.rename(path.with_name("model.onnx"))
    assert read_suspect(wrong).kind == "a safetensors file"


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("h5py")
    pytest.importorskip("gguf")
    import h5py

    with h5py.File(tmp_path / "w.h5", "w") as opened:
        opened["w"] = np.ones(3)
    quantised = write(framework_makers.gguf_int8, tmp_path / "made")
    plain = write(framework_makers.gguf_float, tmp_path / "plain")
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name in ("h5py", "gguf"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=r"h5py; run pip install 'passportize\[keras\]'"):
        read_suspect(tmp_path / "w.h5")
    with pytest.raises(MissingExtra, match=r"gguf undoes; run pip install 'passportize\[gguf\]'"):
        read_suspect(quantised)
    # What is not quantised needs no package.
    assert read_suspect(plain).tensors


def test_a_key_of_a_training_checkpoint(tmp_path: Path) -> None:
    torch.save(
        {"state_dict": {"w": torch.ones(2)}, "state_dict_ema": {"w": torch.zeros(2)}},
        tmp_path / "c.pt",
    )
    assert read_suspect(tmp_path / "c.pt").tensors["w"].sum() == 2
    assert read_suspect(tmp_path / "c.pt", "state_dict_ema").tensors["w"].sum() == 0
    with pytest.raises(CheckpointError, match=r"nothing under 'x' \(it has: state_dict"):
        read_suspect(tmp_path / "c.pt", "x")


def test_optimizers_are_left_out(tmp_path: Path) -> None:
    path = write(torch_makers.training_checkpoint, tmp_path / "made")
    model = FoundNet()
    adam = torch.optim.Adam(model.parameters())
    model(EXAMPLE + 1).sum().backward()
    adam.step()
    content = {"net_g": model.state_dict(), "optim_g": adam.state_dict(), "epoch": 3}
    torch.save(content, tmp_path / "gan.pt")
    assert set(read_suspect(path).tensors) == set(model.state_dict())
    assert len(read_suspect(tmp_path / "gan.pt").tensors) == len(model.state_dict())


def test_folders(tmp_path: Path) -> None:
    state = {"w": torch.ones(3)}
    torch.save(state, tmp_path / "a.pt")
    assert read_suspect(tmp_path).kind == "a folder of weights"
    torch.save(state, tmp_path / "b.pt")
    assert "several files of weights (a.pt, b.pt)" in said(tmp_path)
    torch.save(state, tmp_path / "optimizer.pt")
    (tmp_path / "b.pt").unlink()
    assert list(read_suspect(tmp_path).tensors) == ["w"]
    (tmp_path / "saved_model.pb").write_bytes(b"x")
    assert "a TensorFlow SavedModel" in said(tmp_path)


def test_shards_that_are_missing_are_named(tmp_path: Path) -> None:
    path = write(torch_makers.safetensors_shards, tmp_path / "made")
    shards = sorted(path.parent.glob("*-of-*"))
    assert len(shards) > 2
    index = json.loads(path.read_text())
    moved = next(name for name, shard in index["weight_map"].items() if shard == shards[0].name)
    index["weight_map"][moved] = shards[1].name
    path.write_text(json.dumps(index))
    assert f"{shards[1].name} lacks {moved}" in said(path)
    shards[1].unlink()
    assert f"{shards[1].name} is missing" in said(path)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_checkpoint_of_several_processes_is_put_together(tmp_path: Path) -> None:
    """Pieces along the first dimension, as sharded training writes them."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.metadata import MetadataIndex

    whole = torch.arange(40.0).reshape(8, 5)
    dcp.save({"w": whole[:5].clone()}, checkpoint_id=str(tmp_path), no_dist=True)
    reader = dcp.FileSystemReader(str(tmp_path))
    metadata = reader.read_metadata()
    torch.save(whole[5:].clone(), tmp_path / "__1_0.distcp")
    entry = metadata.state_dict_metadata["w"]
    chunk = type(entry.chunks[0])(torch.Size([5, 0]), torch.Size([3, 5]))
    metadata.state_dict_metadata["w"] = type(entry)(
        entry.properties, torch.Size([8, 5]), [*entry.chunks, chunk]
    )
    first = next(iter(metadata.storage_data.values()))
    metadata.storage_data[MetadataIndex("w", torch.Size([5, 0]), 1)] = type(first)(
        "__1_0.distcp", 0, (tmp_path / "__1_0.distcp").stat().st_size
    )
    import pickle

    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    assert torch.equal(read_suspect(tmp_path).tensors["w"], whole)
    metadata.state_dict_metadata["w"] = type(entry)(
        entry.properties, torch.Size([9, 5]), [*entry.chunks, chunk]
    )
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    assert "w of shape (9, 5) is not whole" in said(tmp_path)


def test_arrays_of_objects_are_not_looked_at(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", w=np.ones(3), o=np.array([{}], dtype=object))
    opened = read_suspect(tmp_path / "w.npz")
    assert list(opened.tensors) == ["w"] and "1 arrays of Python objects" in opened.notes[0]


@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f8", ">f2", "<i2", "|i1", "|b1", ">i8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_in_every_order_of_bytes(kind: str, order: str, tmp_path: Path) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(kind)
    array = np.asarray(array, order="F" if order == "F" else "C")
    np.save(tmp_path / "w.npy", array)
    found = read_suspect(tmp_path / "w.npy").tensors["w"]
    assert found.numpy().tolist() == array.tolist()
    torch.save({"w": array, "x": torch.ones(1)}, tmp_path / "w.pt")
    assert read_suspect(tmp_path / "w.pt").tensors["w"].numpy().tolist() == array.tolist()


def test_names_of_a_file_reach_no_terminal_raw(tmp_path: Path) -> None:
    header = json.dumps({"\x1b[2J": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}})
    data = len(header).to_bytes(8, "little") + header.encode() + bytes(4)
    (tmp_path / "w.safetensors").write_bytes(data)
    assert "\x1b" not in said(tmp_path / "w.safetensors")


def test_nothing_is_read_before_it_is_looked_at(tmp_path: Path) -> None:
    """Tensors are views of the file: a change of the file before they are looked at shows."""
    path = write(torch_makers.state_dict, tmp_path / "made")
    opened = read_suspect(path)
    weight = opened.tensors["conv.weight"]
    before = weight.numpy().tobytes()[:64]
    with path.open("r+b") as stream:
        at = path.read_bytes().index(before)
        stream.seek(at)
        stream.write(bytes(64))
    again = read_suspect(path).tensors["conv.weight"]
    assert float(again.reshape(-1)[:16].abs().sum()) == 0.0
    # And writing to a tensor never reaches the file.
    again.fill_(7.0)
    assert float(read_suspect(path).tensors["conv.weight"].max()) != 7.0


def test_a_foreign_file_beside_a_model(tmp_path: Path) -> None:
    """Bits are read without the model; that it cannot be run is said and not an error."""
    pytest.importorskip("onnx")
    path = write(framework_makers.onnx_scripted, tmp_path / "made")
    model, claim = marked()
    batches = [(EXAMPLE.repeat(4, 1, 1, 1), torch.zeros(4, dtype=torch.long))]
    verdict = pp.verify(path, OWNER, claim, batches, model=model)
    assert verdict.accepted and verdict.fidelity is None
    assert "which is an ONNX model, so it cannot be run as model=" in verdict.fidelity_reason
    # Where the names are there, the model is filled.
    script = write(torch_makers.script, tmp_path / "script")
    full = pp.verify(script, OWNER, claim, batches, model=model)
    assert full.accepted and full.public_accuracy is not None
