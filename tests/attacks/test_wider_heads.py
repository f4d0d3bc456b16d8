"""Channels are added to heads of attention, and no output changes."""

from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from passportize.attacks import Means, run_attack
from passportize.attacks.wider_heads import widen_heads
from passportize.errors import InvalidArgument
from tests.support import looked_through as kinds
from tests.support.widths import EXAMPLE, as_trained


def small_vit() -> nn.Module:
    return VisionTransformer(
        img_size=16, patch_size=4, embed_dim=96, depth=2, num_heads=3, num_classes=10
    )


def test_every_head_gets_more_queries_keys_and_values() -> None:
    model = as_trained(small_vit, 0)
    outcome = run_attack("wider-heads", model, Means(example_inputs=EXAMPLE), share=0.25)
    assert outcome.figures["channels added"] == 2 * 2 * 3 * 8
    with torch.no_grad():
        torch.testing.assert_close(outcome.model(EXAMPLE), model(EXAMPLE), atol=1e-5, rtol=1e-5)
    attention = outcome.model.blocks[0].attn
    assert attention.qkv.weight.shape == (3 * 3 * 40, 96) and attention.head_dim == 40
    assert attention.proj.weight.shape == (96, 3 * 40)
    # It trains on like any other, and everything new is a parameter of its own.
    outcome.model.train()(EXAMPLE).sum().backward()
    assert attention.qkv.weight.grad.shape == attention.qkv.weight.shape
    assert model.blocks[0].attn.head_dim == 32


@pytest.mark.parametrize("kind", [kinds.Attention, kinds.Cosine, kinds.TableOfHeads])
def test_heads_of_several_kinds(kind: type[nn.Module]) -> None:
    model, x = as_trained(lambda: kinds.Tokens(kind), 0), torch.randn(2, 6, kinds.INPUTS)
    with torch.no_grad():
        before = model(x)
        assert widen_heads(model, 0.5, example_inputs=x) == 2 * 3 * 8
        torch.testing.assert_close(model(x), before, atol=1e-5, rtol=1e-5)


def test_what_counts_on_its_width_is_put_back() -> None:
    model, x = as_trained(lambda: kinds.Tokens(kinds.Rotary), 0), torch.randn(2, 6, kinds.INPUTS)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InvalidArgument, match="no heads of attention"):
        run_attack("wider-heads", model, Means(example_inputs=x))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(InvalidArgument, match="share"):
        widen_heads(model, 0.0)
