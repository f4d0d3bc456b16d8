"""Permuted channels (LayerShuffle, KDD 2023): a disguise that leaves the function as it is.

The channels of a layer change places, and with them the entries of every norm, gate and layer that
is tied to them or reads them; so do whole groups of grouped convolutions and norms. A mark that is
read row by row in a fixed order is not found any more; no data, training or knowledge of a passport
is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from passportize.alignment.tied_channels import TiedChannels, find_tied_channels
from passportize.attacks.attack import Attacked, Means, register_attack
from passportize.attacks.descent import example_of
from passportize.errors import InvalidArgument
from passportize.tracing.unchanged import FunctionCheck

__all__ = ["PermutedChannels", "permute_channels"]


@dataclass(frozen=True)
class PermutedChannels:
    """Channels, or whole groups of them, that changed places with each other.

    Attributes:
        weights: Names of the weights that make them.
        order: Which bundle of channels is at each place now, int64 ``[channels]``.
    """

    weights: tuple[str, ...]
    order: Tensor


@torch.no_grad()
def permute_channels(
    model: nn.Module, generator: torch.Generator | None = None, *, example_inputs: Any = None
) -> list[PermutedChannels]:
    """Permute all channels that can be, at random, in place; the model computes what it did before.

    What can be permuted is found by :func:`passportize.alignment.tied_channels.find_tied_channels`.
    Should the output change on the example inputs nevertheless, the group that does it is put back.

    Args:
        model: A plain model.
        generator: Source of the random choices.
        example_inputs: What to call the model with, as in :func:`passportize.plan`; timm models
            need none.

    Returns:
        What was done, one entry per group.

    Raises:
        TracingError: The model cannot be read.
    """
    check = FunctionCheck(model, example_inputs)
    tied = find_tied_channels(model, example_inputs)
    tensors = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    # Channels within groups first, which are then exchanged as wholes.
    units = [*range(len(tied.exchanges), len(tied.units)), *range(len(tied.exchanges))]
    orders = {at: torch.randperm(tied.units[at].size, generator=generator) for at in units}
    tied.permute(tensors, orders)
    if check.changed(model):
        tied.permute(tensors, _backwards(orders))
        for at, order in list(orders.items()):
            alone = {at: order}
            tied.permute(tensors, alone)
            if check.changed(model):
                tied.permute(tensors, _backwards(alone))
                del orders[at]
    return [PermutedChannels(_weights(tied, at), order) for at, order in orders.items()]


def _backwards(orders: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """What undoes some orders."""
    return {at: torch.argsort(order) for at, order in reversed(list(orders.items()))}


def _weights(tied: TiedChannels, number: int) -> tuple[str, ...]:
    axes = [tied.axes[axis] for axis, _ in tied.units[number].places]
    return tuple(dict.fromkeys(axis.tensor for axis in axes if axis.role in ("rows", "whole")))


@register_attack(
    "permutation",
    kind="removal",
    source="Cracking White-box DNN Watermarks via Invariant Neuron Transforms, KDD 2023",
    expected="hides every mark that is read in a fixed order; undone with the released weights",
)
def _attack(model: nn.Module, means: Means) -> Attacked:
    """Channels change places, everywhere they can; no output changes (LayerShuffle)."""
    done = permute_channels(
        model, torch.Generator().manual_seed(means.seed), example_inputs=example_of(model, means)
    )
    if not done:
        raise InvalidArgument(f"permutation: {type(model).__name__} has no channels to permute")
    return Attacked(figures={"groups permuted": len(done)})
