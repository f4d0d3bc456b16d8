"""The joint loss, and what it refuses."""

from __future__ import annotations

import logging
from collections import UserDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import passportize as pp
from passportize.errors import BranchMisuse, InvalidArgument, NotPassportized
from passportize.layers.model import switch_of
from passportize.training.criterion import JointCriterion
from passportize.training.loss import train_jointly
from tests.support.small_joint import CONFIGS, batch, gradients, small


def test_a_bfloat16_model_trains_jointly() -> None:
    model = small(CONFIGS["keyed"]).to(torch.bfloat16)
    x, y = batch()
    loss = pp.joint_loss(model, x.bfloat16(), y, F.cross_entropy)
    loss.total.backward()
    assert loss.sign.dtype == torch.float32
    assert all(torch.isfinite(value).all() for value in gradients(model).values())


def test_a_criterion_must_return_one_number() -> None:
    x, y = batch()
    with pytest.raises(InvalidArgument, match="one number"):
        pp.joint_loss(small(), x, y, nn.CrossEntropyLoss(reduction="none"))


def test_misuse_is_named() -> None:
    x, y = batch()
    model = small()
    with pytest.raises(BranchMisuse, match="eval mode"):
        pp.joint_loss(model.eval(), x, y, F.cross_entropy)
    with pytest.raises(InvalidArgument, match="callable"):
        pp.joint_loss(model, x, y, None)
    with pytest.raises(NotPassportized):
        train_jointly(nn.Linear(2, 2))


@dataclass
class Labels:
    y: Tensor
    smoothing: float = 0.1


TARGETS: list[tuple[str, Any, bool]] = [
    ("labels", torch.zeros(32), True),
    ("several heads", (torch.zeros(32), torch.zeros(32, 4)), True),
    ("mapping", UserDict(y=torch.zeros(32), kind="classes", weight=torch.ones(())), True),
    ("dataclass", Labels(torch.zeros(32)), True),
    ("boxes of each image", [{"boxes": torch.zeros(40, 4)} for _ in range(32)], False),
    ("as many boxes as images", [{"boxes": torch.zeros(32, 4)} for _ in range(32)], False),
    ("boxes of all images", {"index": torch.arange(64) // 2, "boxes": torch.zeros(64, 4)}, False),
    ("class weights", (torch.zeros(32), torch.ones(3)), False),
    ("words", ["cat"] * 32, False),
    ("numbers", tuple(range(32)), False),
    ("numpy", np.zeros(32), False),
    ("inside", {"y": torch.zeros(32), "names": np.array(["a"] * 32)}, False),
]


@pytest.mark.parametrize(
    ("targets", "rows"), [case[1:] for case in TARGETS], ids=[case[0] for case in TARGETS]
)
def test_targets_are_cut_with_the_batch_or_there_are_two_passes(targets, rows, caplog) -> None:
    seen: list[Any] = []

    def criterion(output: Tensor, given: Any) -> Tensor:
        seen.append((len(output), given))
        return output.sum()

    model = small()
    assert switch_of(model).config.passes == "doubled"
    x, _ = batch(32)
    with caplog.at_level(logging.INFO, "passportize"):
        pp.joint_loss(model, x, targets, criterion)
    (all_rows, whole), (some_rows, part) = seen
    assert all_rows == 32 and whole is targets
    if rows:
        assert some_rows == 8 and type(part) is type(targets)
        first = next(iter(part.values())) if isinstance(part, UserDict) else part
        first = first.y if isinstance(first, Labels) else first
        assert len(first[0] if isinstance(first, tuple) else first) == 8
        return
    assert some_rows == 32 and part is targets
    assert "the targets hold" in caplog.text
    model = small(pp.PassportConfig.keyed(passes="doubled"))
    with pytest.raises(BranchMisuse, match=r"the targets hold .*passes='separate'"):
        pp.joint_loss(model, x, targets, criterion)
    train_jointly(model)
    with pytest.raises(BranchMisuse, match=r"the targets hold .*passes='separate'"):
        JointCriterion(criterion)(model(x), targets)


def test_targets_of_a_batch_that_is_private_as_a_whole_need_no_cut() -> None:
    """Eight samples at least: of the last, small batch nothing has to be told apart."""
    model = small()
    x, _ = batch(8)
    pp.joint_loss(model, x, ["cat"] * 8, lambda output, _: output.sum())
    assert switch_of(model).config.passes == "doubled"
