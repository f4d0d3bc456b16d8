"""How many operations a training step takes, as a multiple of the plain one's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import passportize as pp
from benchmarks.common.operations import CountOperations
from examples.pointnet_model import PointNet
from tests.support.small_joint import PASSPORT

BOUND = 2.5
"""A norm that merely runs twice makes it 1.66."""

MODELS: dict[str, Callable[[], nn.Module]] = {
    **{
        name: partial(timm.create_model, name, num_classes=10)
        for name in ("resnet18", "resnet50", "mobilenetv3_small_100", "convnext_atto")
    },
    "vit_tiny": partial(timm.create_model, "vit_tiny_patch16_224", num_classes=10, img_size=32),
    "PointNet": partial(PointNet, 10),
}


def plain_step(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> int:
    with CountOperations() as count:
        F.cross_entropy(model(x), y).backward()
    return count.total


@pytest.mark.parametrize("name", MODELS)
def test_every_step_takes_at_most_so_many_operations(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().train()
    shape = (64, 3) if name == "PointNet" else (3, 32, 32)
    x, y = torch.randn(8, *shape), torch.arange(8)
    plain = plain_step(model, x, y)
    model.zero_grad()
    config = pp.PassportConfig.keyed(sign_every=2)
    pp.passportize(model, PASSPORT, config=config, example_inputs=x[:2])
    for step in ("with sign loss", "without"):
        model.zero_grad()
        with CountOperations() as count:
            pp.joint_loss(model, x, y, F.cross_entropy).total.backward()
        assert count.total <= BOUND * plain, (step, count.total / plain)


def test_responses_do_not_take_more_operations_for_more_norms() -> None:
    """In a step that runs no private branch, what twice the layers take is two gradients each."""

    def operations(layers: int, sign_every: int) -> int:
        torch.manual_seed(0)
        blocks = [[nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU()] for _ in range(layers)]
        model = nn.Sequential(*(module for block in blocks for module in block))
        config = pp.PassportConfig.signature(sign_every=sign_every)
        pp.passportize(model, PASSPORT, config=config, example_inputs=torch.randn(4, 32))
        x, y = torch.randn(16, 32), torch.arange(16)
        counts = []
        for _ in range(2):
            model.zero_grad()
            with CountOperations() as count:
                pp.joint_loss(model, x, y, F.cross_entropy).total.backward()
            counts.append(count.total)
        return counts[0] - counts[1]

    few, many = operations(10, 2), operations(20, 2)
    # The gradient of a weight is the sum of two.
    assert many - few == 10
    assert few <= 65
