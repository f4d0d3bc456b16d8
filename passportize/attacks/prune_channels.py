"""Structured pruning: whole channels taken out, and the network is a narrower one.

Of every group of channels the ones go that count for least, by the product of the lengths of what
makes them and of what reads them; "Pruning Filters for Efficient ConvNets" (ICLR 2017) takes the
first alone. It takes no data, but accuracy, which a little training gives back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from passportize.alignment.copies import without_channels
from passportize.alignment.tied_channels import TiedChannels, TiedGroup, find_tied_channels
from passportize.attacks.attack import Attacked, Means, register_attack
from passportize.attacks.descent import example_of
from passportize.attacks.dummy_neurons import can_resize
from passportize.errors import InvalidArgument
from passportize.utils.resized import put_tensor, tensor_of

__all__ = ["prune_channels"]


@torch.no_grad()
def prune_channels(model: nn.Module, share: float = 0.3, example_inputs: Any = None) -> int:
    """Take the channels that count for least out of every group that can be resized, in place.

    Args:
        model: A plain model, in evaluation mode; its parameters are replaced by smaller ones.
        share: How many go, of those that are there.
        example_inputs: As in :func:`passportize.plan`.

    Returns:
        The number of channels taken out.

    Raises:
        InvalidArgument: ``share`` is out of range.
        TracingError: The model cannot be read.
    """
    if not 0 < share < 1:
        raise InvalidArgument(f"prune-channels: share={share!r} must lie in (0, 1)")
    tied = find_tied_channels(model, example_inputs)
    gone = []
    for group in tied.groups:
        mask = torch.zeros(group.size, dtype=torch.bool)
        count = int(share * group.size)
        if count and can_resize(model, tied, group):
            mask[_weights(model, tied, group).argsort(stable=True)[:count]] = True
        gone.append(mask)
    before = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    for name, tensor in without_channels(before, tied, gone).items():
        if tensor.shape != before[name].shape:
            put_tensor(model, name, tensor)
    return sum(int(mask.sum()) for mask in gone)


def _weights(model: nn.Module, tied: TiedChannels, group: TiedGroup) -> Tensor:
    """How much each channel of a group counts for, float64 ``[size]``."""
    lengths = {role: torch.zeros(group.size, dtype=torch.float64) for role in ("rows", "columns")}
    for number, places in group.places:
        axis = tied.axes[number]
        tensor = tensor_of(model, axis.tensor)
        if axis.role in lengths and tensor.dim() > 1:
            entries = axis.entries(tensor.detach().double().cpu(), places)
            lengths[axis.role] += entries.reshape(group.size, -1).square().sum(1)
    return lengths["rows"] * lengths["columns"]


@register_attack(
    "prune-channels",
    kind="removal",
    source="Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017",
    expected="hides every mark whose verification wants the released shapes; what is left is read "
    "with the released weights",
)
def _attack(model: nn.Module, means: Means, *, share: float = 0.3) -> Attacked:
    """Whole channels taken out, those that count for least."""
    gone = prune_channels(model, share, example_of(model, means))
    if not gone:
        raise InvalidArgument(
            f"prune-channels: {type(model).__name__} has no channels that could be taken out"
        )
    return Attacked(figures={"channels gone": gone})
