"""Norms of timm whose forward may take a fused kernel."""

from __future__ import annotations

import copy

import pytest
import timm.layers
import torch

from tests.support.norm_cases import CHANNELS, IMAGE, TOKENS, example, passportized, randomised
from tests.support.round_trip import assert_same_bits


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize(
    "name", ["LayerNorm", "GroupNorm1", "RmsNorm", "LayerNorm2d", "SimpleNorm"]
)
def test_fast_norm_under_autocast(name: str, fast: bool) -> None:
    norm_class = getattr(timm.layers, name, None)
    if norm_class is None:
        pytest.skip("not in this release of timm")
    shape = IMAGE if name in ("GroupNorm1", "LayerNorm2d") else TOKENS
    host = randomised(norm_class(CHANNELS))
    host._fast_norm = fast
    layer = passportized(copy.deepcopy(host))
    x = example(shape)
    with torch.autocast("cpu", torch.bfloat16):
        expected = host(x)
        scale, shift, _ = layer.private_factors(x)
        actual = layer.private_norm(x, scale, shift)
    assert_same_bits(expected, actual, name)
    assert expected.dtype == actual.dtype
