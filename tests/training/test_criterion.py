"""A criterion for loops that call model and loss themselves."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import passportize as pp
from passportize.layers.joint_forward import JointOutput
from passportize.training.criterion import JointCriterion, JointMeter
from passportize.training.loss import train_jointly
from tests.support.small_joint import CLASSES, CONFIGS, batch, small


def test_train_jointly_lasts_and_criterion_takes_either_output() -> None:
    model = train_jointly(small(CONFIGS["keyed"]))
    meter = JointMeter()
    criterion = JointCriterion(nn.CrossEntropyLoss(), meter=meter)
    x, y = batch()
    for _ in range(2):
        output = model(x)
        assert isinstance(output, JointOutput)
        loss = criterion(output, y)
    parts = meter.read()
    private = 0.7 * math.sqrt(0.5) * parts["private_loss"]
    assert parts.keys() == {"sign_loss", "public_loss", "private_loss", "private_top1"}
    assert 0 <= parts["private_top1"] <= 100
    assert loss.item() == pytest.approx(
        parts["public_loss"] + private + parts["sign_loss"], rel=0.2
    )
    assert meter.read() == {}
    model.eval()
    plain = model(x)
    assert plain.shape == (16, CLASSES)
    assert torch.equal(criterion(plain, y), F.cross_entropy(plain, y))
    assert train_jointly(model, False).train()(x).shape == (16, CLASSES)


def test_criterion_cuts_soft_targets_and_knows_jensen_shannon() -> None:
    timm_loss = pytest.importorskip("timm.loss")
    model = train_jointly(small(pp.PassportConfig.keyed(private_fraction=0.5, sign_weight=0.0)))
    x, y = batch(18)
    joint = model(x)
    soft = F.one_hot(y, CLASSES).double() * 0.8 + 0.1
    loss = JointCriterion(timm_loss.SoftTargetCrossEntropy())(joint, soft)
    expected = timm_loss.SoftTargetCrossEntropy()
    weight = 0.5 * math.sqrt(9 / 18)
    torch.testing.assert_close(
        loss, expected(joint.public, soft) + weight * expected(joint.private, soft[:9])
    )
    jensen = timm_loss.JsdCrossEntropy(num_splits=3, smoothing=0.0)
    loss = JointCriterion(jensen)(joint, y)
    expected = jensen(joint.public, y) + weight * F.cross_entropy(joint.private, y[:9])
    torch.testing.assert_close(loss, expected)
