"""Channels are added to residual streams, and no output changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from passportize.attacks import Means, run_attack
from passportize.attacks.wider_streams import widen_streams
from passportize.errors import InvalidArgument
from tests.attacks.test_wider_heads import small_vit
from tests.support import looked_through as kinds
from tests.support.widths import EXAMPLE, FAMILIES, as_trained


def test_a_wider_transformer_computes_what_it_did() -> None:
    model = as_trained(small_vit, 0)
    outcome = run_attack("wider-streams", model, Means(example_inputs=EXAMPLE), share=0.25)
    assert outcome.figures["channels added"] == 24
    with torch.no_grad():
        torch.testing.assert_close(outcome.model(EXAMPLE), model(EXAMPLE), atol=1e-4, rtol=1e-4)
    block = outcome.model.blocks[0]
    assert block.norm1.normalized_shape == (120,) and block.norm1.weight.shape == (120,)
    assert block.attn.qkv.weight.shape == (288, 120) and block.attn.proj.weight.shape == (120, 96)
    assert outcome.model.pos_embed.shape[-1] == outcome.model.cls_token.shape[-1] == 120
    # It trains on like any other.
    outcome.model.train()(EXAMPLE).sum().backward()
    assert block.norm1.weight.grad.shape == (120,)


@pytest.mark.parametrize("norm", [nn.RMSNorm, kinds.LengthNorm])
def test_streams_between_norms_of_length(norm: type[nn.Module]) -> None:
    model = as_trained(lambda: kinds.Tokens(kinds.Attention, norm), 0)
    x = torch.randn(2, 6, kinds.INPUTS)
    with torch.no_grad():
        before = model(x)
        assert widen_streams(model, 0.5, example_inputs=x) == 48
        torch.testing.assert_close(model(x), before, atol=1e-4, rtol=1e-4)


def test_without_a_stream_it_says_so() -> None:
    model = as_trained(FAMILIES["dense"], 0)
    with pytest.raises(InvalidArgument, match="no stream"):
        run_attack("wider-streams", model, Means(example_inputs=EXAMPLE))
    with pytest.raises(InvalidArgument, match="share"):
        widen_streams(model, 5.0)
