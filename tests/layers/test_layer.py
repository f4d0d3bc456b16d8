"""The two-branch layer, and the view of a norm with other factors."""

from __future__ import annotations

import pytest
import timm.layers
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import passportize as pp
from passportize.layers.layer import PassportLayer
from passportize.layers.switch import Pass
from tests.support.norm_cases import CHANNELS, IMAGE, TOKENS, example, passportized, randomised
from tests.support.round_trip import assert_same_bits
from tests.support.small_joint import batch, gradients, small


def test_host_called_by_keyword() -> None:
    norm = nn.BatchNorm2d(CHANNELS)
    x = example(IMAGE)
    layer = passportized(norm)
    assert_same_bits(layer(x), layer(input=x), "public")
    layer.passport.switch.mode = Pass.PRIVATE
    layer.eval()
    assert_same_bits(layer(x), layer(input=x), "private")


@pytest.mark.parametrize("name", ["LayerNorm", "BatchNormAct2d"])
def test_private_norm_compiles_without_graph_breaks(name: str) -> None:
    norm_class = getattr(timm.layers, name)
    host = randomised(norm_class(CHANNELS)).eval()
    layer = passportized(host)
    layer.passport.switch.mode = Pass.PRIVATE
    x = example(TOKENS if name == "LayerNorm" else IMAGE)
    explained = torch.compile(layer, backend="eager", fullgraph=True)
    assert_same_bits(layer(x), explained(x), name)


class DoubledLayerNorm(nn.LayerNorm):
    """A norm that calls its parent's forward."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class PassportDoubledLayerNorm(PassportLayer, DoubledLayerNorm):
    """An empty adapter."""


@pytest.mark.usefixtures("own_adapters")
def test_hosts_that_call_their_parents_forward() -> None:
    pp.register_adapter(DoubledLayerNorm, PassportDoubledLayerNorm)
    host = randomised(DoubledLayerNorm(CHANNELS))
    x = example(TOKENS)
    expected = host(x)
    layer = passportized(host)
    assert_same_bits(expected, layer.private_norm(x, host.weight, host.bias), "doubled")


def test_a_step_without_private_pass_gives_every_parameter_a_gradient() -> None:
    """DDP waits for all of them."""
    model = small(pp.PassportConfig.paper(private_every=2))
    x, y = batch()
    for _ in range(2):
        model.zero_grad()
        pp.joint_loss(model, x, y, F.cross_entropy).total.backward()
        assert gradients(model).keys() == dict(model.named_parameters()).keys()
