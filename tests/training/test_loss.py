"""The joint loss, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import passportize as pp
from passportize.errors import BranchMisuse, InvalidArgument, NotPassportized
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
