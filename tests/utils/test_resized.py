"""Tensors of another size in a live model: its layers know, and what was shared stays shared."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from passportize.utils.resized import of_widths, put_tensor, tensor_of


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inward, self.outward = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.outward.weight = self.inward.weight


def test_what_has_several_names_keeps_them() -> None:
    model = Tied()
    before = copy.deepcopy(model.state_dict())
    wide = torch.randn(7, 6)
    found = of_widths(model, {"inward.weight": wide, "outward.weight": wide})
    assert found.inward.weight is found.outward.weight and found.outward.in_features == 6
    assert torch.equal(found.inward.weight, wide) and found.inward.weight is not wide
    assert model.outward.in_features == 4
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("layer", "shape", "inputs", "channels"),
    [
        (nn.Conv2d(4, 6, 3), (8, 5, 3, 3), (1, 5, 4, 4), 8),
        (nn.ConvTranspose2d(4, 6, 3), (5, 8, 3, 3), (1, 5, 4, 4), 8),
        (nn.Conv2d(4, 4, 3, groups=4), (9, 1, 3, 3), (1, 9, 4, 4), 9),
        (nn.Conv2d(4, 8, 3, groups=4), (10, 1, 3, 3), (1, 5, 4, 4), 10),
        (nn.Linear(4, 6), (8, 5), (1, 5), 8),
    ],
)
def test_layers_take_note(
    layer: nn.Module, shape: tuple[int, ...], inputs: tuple[int, ...], channels: int
) -> None:
    put_tensor(layer, "weight", torch.randn(shape))
    put_tensor(layer, "bias", torch.zeros(channels))
    assert isinstance(layer.weight, nn.Parameter) and tensor_of(layer, "bias") is layer.bias
    assert layer(torch.randn(inputs)).shape[1] == channels


def test_norms_take_note_and_flags_stay() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4))
    model[0].weight.requires_grad_(False)
    for key in ("weight", "bias", "running_mean", "running_var"):
        put_tensor(model, f"0.{key}", torch.ones(6))
    assert model[0].num_features == 6 and not model[0].weight.requires_grad
    assert model.eval()(torch.randn(2, 6, 3, 3)).shape[1] == 6


@pytest.mark.parametrize("name", ["0.nothing", "0.bias"])
def test_a_name_of_nothing(name: str) -> None:
    with pytest.raises(KeyError):
        tensor_of(nn.Sequential(nn.Linear(2, 2, bias=False)), name)
