"""Layers that mix positions, the same for every channel, and norms over these."""

from __future__ import annotations

from torch import Tensor, nn

from passportize.alignment.axes import FIXED
from passportize.alignment.channels import ChannelLabels, thin, varied
from passportize.alignment.walk_layers import uniform_along
from passportize.alignment.walk_norms import counted_by

__all__ = ["over_positions"]

_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)


def over_positions(labels: ChannelLabels, module: nn.Module, values: Tensor) -> int | None:
    """The dimension whose entries a module mixes, or norms, if labels are equal along it.

    Where a few tensors with channels of their own are laid side by side to be mixed, their channels
    become the same ones.

    Args:
        labels: Where to write that down.
        module: A linear layer, a convolution of single entries or a norm; none for any other.
        values: Labels of its input.
    """
    if isinstance(module, nn.Linear):
        dim = values.dim() - 1
    elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        dim = values.dim() - 1 - len(module.kernel_size)
        if {*module.kernel_size, *module.stride, module.groups} != {1}:
            return None
        if module.padding not in ("valid", (0,) * len(module.kernel_size)):
            return None
    elif isinstance(module, _NORMS) and len(getattr(module, "normalized_shape", (0,))) == 1:
        dim = counted_by(module, values)
    else:
        return None
    if not 0 <= dim < values.dim():
        return None
    if uniform_along(values, dim):
        return dim
    narrow = thin(values)
    across = [d for d in varied(narrow) if d != dim]
    if len(across) == 1 and values.shape[dim] < values.shape[across[0]]:
        first = narrow.narrow(dim, 0, 1)
        if isinstance(module, _NORMS) or not bool((narrow > FIXED).all()):
            return None
        labels.tie(first, narrow)
        return dim
    return None
