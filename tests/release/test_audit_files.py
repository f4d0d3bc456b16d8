"""What must not go out is found in files of every kind, wherever it lies in them."""

from __future__ import annotations

import copy
import zipfile

import numpy as np
import pytest
import torch

import passportize as pp
from passportize.errors import CheckpointError
from passportize.release import audit_files as room
from passportize.release.audit_files import audit_files
from passportize.release.checkpoint import save_weights
from tests.support.small_protected import PASSPORT, live


@pytest.fixture(scope="module")
def model():
    return live("keyed")


def plain(model) -> dict:
    return pp.host_state_dict(model)


def safetensors(folder, model):
    save_weights(folder / "model.safetensors", plain(model))


def torch_file(folder, model):
    torch.save({"state_dict": plain(model)}, folder / "model.pth")


def arrays(folder, model):
    np.savez_compressed(folder / "model.npz", **{k: v.numpy() for k, v in plain(model).items()})


def texts(folder, model):
    (folder / "below").mkdir()
    (folder / "below" / "README.md").write_text("# A model\n")
    (folder / "empty").write_bytes(b"")


def commitment(folder, model):
    pytest.importorskip("rfc8785")
    pp.save_claim(copy.deepcopy(model), folder / "c")
    pp.commit_release(PASSPORT, folder / "c").save(folder / "commitment.json")
    (folder / "c").unlink()


@pytest.mark.parametrize("make", [safetensors, torch_file, arrays, texts, commitment])
def test_what_may_go_out(make, model, tmp_path):
    make(tmp_path, model)
    found = audit_files(tmp_path)
    assert found and found.files > 0 and "clean" in str(found), str(found)


def passport(folder, model):
    PASSPORT.save(folder / "x")


def sealed(folder, model):
    PASSPORT.save(folder / "x", "words")


def claim(folder, model):
    pp.save_claim(copy.deepcopy(model), folder / "x")


def private_tensors(folder, model):
    save_weights(folder / "x", model.state_dict())


def nested(folder, model):
    torch.save({"state_dict": plain(model), "task": {"deep": model.state_dict()}}, folder / "x")


def optimizer(folder, model):
    torch.save({"state_dict": plain(model), "optimizer": {"state": {}}}, folder / "x")


def whole_model(folder, model):
    torch.save(model, folder / "x")


def named_in_bytes(folder, model):
    (folder / "x").write_bytes(b"\0" * 1000 + b"PassPortize" + b"\0" * 1000)


def across_blocks(folder, model):
    (folder / "x").write_bytes(b"\0" * (room._BLOCK - 5) + b"passportize")


def compressed(folder, model):
    with zipfile.ZipFile(folder / "x", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("code/serialized.py", "import passportize\n" * 50)


def bomb(folder, model):
    with zipfile.ZipFile(folder / "x", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(1 << 28))


@pytest.mark.parametrize(
    ("make", "finding"),
    [
        (passport, "this is a passport"),
        (sealed, "this is a passport"),
        (claim, "this is a claim"),
        (private_tensors, "tensors of private branches"),
        (nested, "private branches under deep"),
        (optimizer, "optimizer"),
        (whole_model, "name passportize"),
        (named_in_bytes, "name passportize"),
        (across_blocks, "name passportize"),
        (compressed, "in its member code/serialized.py"),
        (bomb, "too large to be searched"),
    ],
)
def test_what_may_not(make, finding, model, tmp_path):
    make(tmp_path, model)
    found = audit_files(tmp_path)
    assert not found and any(finding in line for line in found.findings), str(found)
    assert str(found).count("x: ") == len(found.findings)
    assert bytes(range(32)).hex() not in str(found)
    assert not audit_files(tmp_path / "x")


def test_what_cannot_be_read_is_not_cleared(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        audit_files(tmp_path / "none")
    with zipfile.ZipFile(tmp_path / "x", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", "0123456789" * 1000)
    data = bytearray((tmp_path / "x").read_bytes())
    data[40:60] = bytes(20)
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(CheckpointError, match="cannot be cleared"):
        audit_files(tmp_path)
