"""Models that fx cannot read: one real forward pass and its autograd graph."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from passportize.anchors.search import find_anchors
from passportize.errors import ExampleInputFailed
from tests.support.anchor_models import Conditional, brief, norm_widths


def test_the_autograd_graph_answers_where_fx_can_not() -> None:
    model = Conditional()
    model.first.weight.requires_grad_(False)
    model.norm.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = torch.randn(3, 8)
    random_state, flags = torch.get_rng_state(), [m.training for m in model.modules()]
    found = find_anchors(model, norm_widths(model), x)
    assert found.method == "autograd"
    assert found.executed == {"norm", "tail"}
    assert brief(found) == ("autograd", ("last.weight", 4, 0, 1))
    assert brief(found, "tail") == ("autograd", *[("last.weight", 4, 0, 1)] * 3)
    assert "the autograd graph of one forward pass was used" in found.notes[0]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(random_state, torch.get_rng_state())
    assert flags == [m.training for m in model.modules()]
    assert model.kept is None and not model.first.weight.requires_grad
    assert model.last.weight.requires_grad and model.last.weight.grad is None
    copy.deepcopy(model)


def test_an_input_that_fails() -> None:
    model = nn.Sequential(Conditional())
    with pytest.raises(ExampleInputFailed, match=r"its module '0\.first' raised RuntimeError"):
        find_anchors(model, norm_widths(model), torch.randn(3, 7))
    with pytest.raises(ExampleInputFailed, match="too large"):
        find_anchors(model, norm_widths(model), torch.full((3, 8), 1e12))
