"""timm-train --claim: on the checkpoint that will be released, whichever that is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import passportize as pp

pytest.importorskip("timm")
import timm

from passportize.errors import CheckpointError, InvalidArgument
from passportize.integrations.timm import launch
from passportize.integrations.timm.options import parse_options
from tests.integrations.test_timm_hook import GENERATIONS, PASSPORT, SCRIPTS, fresh

SHORT = ("--epochs", "3", "--steps", "2", "--lr", "0.3")


@pytest.fixture(scope="module")
def passport(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("owner") / "owner.passport"
    PASSPORT.save(path)
    return path


def train(passport: Path, output: Path, *own: str, script: int = 2, more: tuple = ()) -> None:
    file = SCRIPTS / f"{GENERATIONS[script]}.py"
    launch(["--passport", str(passport), *own, str(file), "--output", str(output), *SHORT, *more])


def released(file: Path, ema: bool) -> dict:
    """What timm itself makes of the checkpoint."""
    model = fresh()
    timm.models.load_checkpoint(model, str(file), use_ema=ema, strict=True)
    return model.state_dict()


@pytest.mark.parametrize(
    ("own", "more", "file", "ema"),
    [
        ((), ("--model-ema",), "model_best.pth.tar", True),
        (("--no-ema",), ("--model-ema",), "model_best.pth.tar", False),
        (("--claim-of", "last"), (), "last.pth.tar", False),
        (("--claim-of", "last", "--ema"), ("--model-ema",), "last.pth.tar", True),
    ],
    ids=["best averaged", "best live", "last", "last averaged"],
)
def test_the_claim_is_on_the_file_it_names(own, more, file, ema, passport, tmp_path, caplog):
    claim, output = tmp_path / "c", tmp_path / "out"
    with caplog.at_level("INFO", logger="passportize.timm"):
        train(passport, output, "--claim", str(claim), *own, more=more)
    assert str(output / file) in caplog.text
    assert ("averaged weights" in caplog.text) == ema
    verdict = pp.verify(released(output / file, ema), PASSPORT, claim)
    assert verdict.accepted and verdict.same_weights
    others = {"model_best.pth.tar", "last.pth.tar"} - {file}
    for other in others:
        same = pp.verify(released(output / other, not ema and bool(more)), PASSPORT, claim)
        assert same.accepted and not (more and same.same_weights)


def test_private_tensors_in_the_state_dict_as_before_tasks(passport, tmp_path):
    claim, output = tmp_path / "c", tmp_path / "out"
    train(passport, output, "--claim", str(claim), script=0, more=("--model-ema",))
    content = torch.load(output / "model_best.pth.tar", weights_only=False)
    plain = pp.host_state_dict(content["state_dict_ema"])
    assert pp.verify(plain, PASSPORT, claim).same_weights


def test_without_averaged_weights_there_are_none_to_claim(passport, tmp_path):
    claim = tmp_path / "c"
    with pytest.raises(CheckpointError, match="no averaged weights"):
        train(passport, tmp_path / "out", "--claim", str(claim), "--ema")
    assert not claim.exists()


@pytest.mark.parametrize("kind", ["there already", "no folder", "a folder"])
def test_the_path_is_looked_at_before_training(kind, passport, tmp_path):
    claim = tmp_path / "c"
    if kind == "there already":
        claim.write_text("")
    elif kind == "a folder":
        claim.mkdir()
    else:
        claim = tmp_path / "none" / "c"
    script = str(SCRIPTS / f"{GENERATIONS[2]}.py")
    with pytest.raises(InvalidArgument, match="--claim"):
        parse_options(["--passport", str(passport), "--claim", str(claim), script])
