"""What a claim needs is tried before training; weights without bits do not go out unsaid."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import passportize as pp
from passportize.errors import BranchLost, ClaimError, ClaimFileError, NotPassportized, WrappedModel
from passportize.layers.missing_bits import MissingBitsWarning
from passportize.surgery.surgery import UnsavedBranchWarning

PASSPORT = pp.Passport.generate("Checked", date="2026-11-28", secret=bytes(range(32)))
WIDTH = 64


def protected(embed: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(16, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Linear(WIDTH, 3)
    )
    pp.passportize(model, PASSPORT, example_inputs=batch()[0])
    if embed:
        pp.embed_signature(model)
    return model


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(32, 16, generator=torch.Generator().manual_seed(1)), torch.arange(32) % 3


def plain_steps(model: nn.Module, steps: int) -> None:
    """A loop that knows nothing of passports."""
    x, y = batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def test_a_free_path_and_a_sound_model(tmp_path: Path) -> None:
    model = protected()
    pp.check_claimable(model, tmp_path / "claim")
    assert list(tmp_path.iterdir()) == []
    pp.save_claim(model, tmp_path / "claim")
    with pytest.raises(ClaimFileError, match="it exists already"):
        pp.check_claimable(model, tmp_path / "claim")
    pp.check_claimable(model, tmp_path / "claim", overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["claim"]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (".", "give the name of a file in it"),
        ("missing/claim", "create the folder first"),
        ("x" * 300, "File name too long"),
        ("a\0b", "the path is not valid"),
    ],
)
def test_paths_where_nothing_can_be_written(tmp_path: Path, path: str, reason: str) -> None:
    model = protected()
    for call in (pp.check_claimable, pp.save_claim):
        with pytest.raises(ClaimFileError, match=reason):
            call(model, tmp_path / path)
    assert list(tmp_path.iterdir()) == []


def test_models_that_could_not_be_claimed(tmp_path: Path) -> None:
    path = tmp_path / "claim"
    with pytest.raises(NotPassportized):
        pp.check_claimable(nn.Linear(2, 2), path)
    with pytest.raises(WrappedModel):
        pp.check_claimable(nn.DataParallel(protected()), path)
    model = protected()
    model[1].passport.running_var.fill_(torch.inf)
    with pytest.raises(ClaimError, match="not finite"):
        pp.check_claimable(model, path)
    model = protected()
    model[0] = nn.Linear(16, WIDTH)
    with pytest.raises(BranchLost, match="was replaced"):
        pp.check_claimable(model, path)


def test_a_plain_loop_without_signature_is_told_so(tmp_path: Path) -> None:
    model = protected(embed=False)
    plain_steps(model, 5)
    with pytest.warns(MissingBitsWarning, match=r"only \d\d of the 64 .* embed_signature") as seen:
        pp.save_claim(model, tmp_path / "claim")
    assert seen[0].filename == __file__
    model = protected(embed=False)
    pp.joint_loss(model, *batch(), F.cross_entropy)
    with pytest.warns(UnsavedBranchWarning), pytest.warns(MissingBitsWarning):
        pp.unpassportize(model)


def test_nothing_is_said_where_the_bits_are_in_or_nothing_was_done(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = protected()
        pp.joint_loss(model, *batch(), F.cross_entropy)
        pp.save_claim(model, tmp_path / "claim")
        pp.unpassportize(model)
        # Put in and taken out again: nothing was trained, nothing is lost.
        pp.unpassportize(protected(embed=False))
