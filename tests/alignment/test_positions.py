"""Hidden units of layers that mix positions: found by a second walk, moved, and put back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from passportize.alignment.alignment import align
from passportize.alignment.tied_channels import find_tied_channels
from passportize.attacks.neuron_scale import scale_neurons
from passportize.attacks.permutation import permute_channels
from tests.support.mixing import MIXING, NormedPositions, Twice, affine, mixer
from tests.support.widths import EXAMPLE, as_trained, noised


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_hidden_units_over_tokens_lie_on_the_two_layers_of_their_own() -> None:
    tied = find_tied_channels(as_trained(mixer, 0), EXAMPLE)
    tokens = [
        [(tied.axes[number].tensor, tied.axes[number].dim) for number, _ in group.places]
        for group in tied.groups
        if group.size == 40
    ]
    assert tokens == [
        [(f"blocks.{at}.mlp_tokens.{key}", dim) for key, dim in
         (("fc1.weight", 0), ("fc1.bias", 0), ("fc2.weight", 1))]
        for at in range(2)
    ]  # fmt: skip
    # Channels and tokens stand beside each other: no channel lies on a layer over tokens.
    for group in tied.groups:
        names = {tied.axes[number].tensor for number, _ in group.places}
        assert group.size == 40 or not any("mlp_tokens" in name for name in names)


def test_norms_over_positions_let_channels_pass_and_those_over_units_move_with_them() -> None:
    tied = find_tied_channels(as_trained(NormedPositions, 0), EXAMPLE)
    names = [{tied.axes[at].tensor for at, _ in group.places} for group in tied.groups]
    assert {"stem.weight", "stem.bias", "head.weight"} in names
    (units,) = [found for found in names if "hidden.weight" in found]
    assert {"inward.weight", "hidden.bias", "outward.weight"} <= units
    assert not any("norm.weight" in found for found in names)


def test_channels_pass_affine_layers_and_layers_over_tokens() -> None:
    tied = find_tied_channels(as_trained(affine, 0), EXAMPLE)
    (stream,) = [group for group in tied.groups if group.size == 80]
    names = {tied.axes[number].tensor for number, _ in stream.places}
    assert {"stem.proj.weight", "blocks.1.ls1", "blocks.0.norm1.alpha", "norm.beta"} <= names
    assert not any("linear_tokens" in name for name in names)


def test_a_layer_that_is_used_over_channels_too_stays() -> None:
    assert find_tied_channels(Twice().eval(), EXAMPLE).groups == ()


@pytest.mark.parametrize("size", [0.0, 0.3])
@pytest.mark.parametrize("name", MIXING)
def test_units_and_channels_come_back(name: str, size: float) -> None:
    released = as_trained(MIXING[name], 0)
    thief = noised(copy.deepcopy(released), size)
    expected, before = copy.deepcopy(thief.state_dict()), thief(EXAMPLE)
    tied = find_tied_channels(thief, EXAMPLE)
    assert len(permute_channels(thief, seeded(1), example_inputs=EXAMPLE)) == len(tied.units)
    scale_neurons(thief, seeded(), decades=1, flip=0.5, example_inputs=EXAMPLE)
    largest = float(before.detach().abs().max())
    assert torch.allclose(thief(EXAMPLE), before, atol=1e-4 * largest)
    for group in tied.groups:
        axis = tied.axes[group.places[0][0]]
        assert not torch.allclose(thief.state_dict()[axis.tensor], expected[axis.tensor])
    found = align(released.state_dict(), thief.state_dict(), tied)
    for key, tensor in expected.items():
        if tensor.dim() > 1 and len(tensor) > 1:
            rows = [part.flatten(1).float() for part in (found.tensors[key], tensor)]
            assert float(nn.functional.cosine_similarity(*rows).min()) > 0.95, key
