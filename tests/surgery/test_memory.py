"""What a live model holds beside its weights: at most a quarter of their bytes."""

from __future__ import annotations

import pytest
import timm
import torch

import passportize as pp
from passportize.layers.model import passport_layers
from passportize.signature.rows import anchor_fan_in
from passportize.signature.vectors import WINDOW
from tests.support.small_joint import PASSPORT


def held_for(model: torch.nn.Module) -> tuple[int, int]:
    """Bytes of vectors and bits, and of the weights that are bound, by shapes alone."""
    weights = dict(model.named_parameters())
    held, bound = 0, {}
    for site in pp.plan(model).sites:
        for part in site.anchor.parts if site.anchor is not None else ():
            weight = weights[part.weight]
            bound[part.weight] = weight.numel() * weight.element_size()
            # One byte for an entry, a bit as float32.
            held += part.channels * (min(anchor_fan_in(weight.shape, part), WINDOW) + 4)
    return held, sum(bound.values())


def test_vit_tiny_holds_what_shapes_say_and_less_than_a_quarter() -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10)
    expected, bound = held_for(model)
    pp.passportize(model, PASSPORT)
    held = 0
    for layer in passport_layers(model).values():
        secret = layer.passport.secret
        tensors = [
            secret.bits,
            *(tensor for side in secret.sides for tensor in side if torch.is_tensor(tensor)),
        ]
        held += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert held == expected
    assert held <= bound / 4


@pytest.mark.parametrize("name", ["vit_large_patch16_224", "convnext_large", "resnet50"])
def test_large_models_hold_less_than_a_tenth(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    held, bound = held_for(model)
    assert 0 < held < bound / 10
