"""Private running statistics, stored relative to the public ones.

A thief can rescale a channel or flip its sign without changing what the network computes: anchor
row, running mean and scale change together. Raw private statistics would then belong to another
network. Relative to the public ones they do not change:

    offset_c = k_c (mean1_c - mean0_c) / sqrt(var0_c + eps)
    ratio_c = (var1_c + eps) / (var0_c + eps)

with ``k_c`` the sign of the public scale. What was changed in the suspect is carried over to its
private branch, where it cancels as it does in the public one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from passportize.errors import ClaimError
from passportize.layers.private_branch import Branch
from passportize.utils.precision import on_cpu_float64

__all__ = ["OFFSET", "RATIO", "has_statistics", "relative_statistics", "restore_statistics"]

OFFSET = "offset"
RATIO = "ratio"


def has_statistics(norm: nn.Module) -> bool:
    """Whether a norm keeps running statistics."""
    return isinstance(getattr(norm, "running_mean", None), Tensor) and isinstance(
        getattr(norm, "running_var", None), Tensor
    )


def relative_statistics(norm: nn.Module, branch: Branch, scale: Tensor | None) -> dict[str, Tensor]:
    """A branch's running statistics relative to its norm's; empty where there are none.

    Args:
        norm: The host, with its public statistics.
        branch: Its private branch.
        scale: The public scale, ``[channels]``, or None.

    Returns:
        ``"offset"`` and ``"ratio"``, float64 ``[channels]``, on the CPU.

    Raises:
        ClaimError: The statistics are not finite: training went wrong.
    """
    if branch.running_mean is None or branch.running_var is None or not has_statistics(norm):
        return {}
    mean, deviation, eps, sign = _public(norm, scale)
    private_mean = on_cpu_float64(branch.running_mean)
    private_var = on_cpu_float64(branch.running_var)
    relative = {
        OFFSET: sign * (private_mean - mean) / deviation,
        RATIO: (private_var + eps) / deviation.square(),
    }
    for tensor in relative.values():
        if not bool(torch.isfinite(tensor).all()):
            raise ClaimError(
                f"{branch.site.name}: the private running statistics are not finite numbers, so "
                "there is no branch to save; train with a smaller learning rate"
            )
    return relative


def restore_statistics(
    norm: nn.Module, branch: Branch, scale: Tensor | None, offset: Tensor, ratio: Tensor
) -> None:
    """Give a branch the statistics of a claim, in the units of this norm.

    Args:
        norm: The suspect's norm, with running statistics.
        branch: A branch for it.
        scale: Its public scale, or None.
        offset: As :func:`relative_statistics` returns it.
        ratio: Likewise.
    """
    assert branch.running_mean is not None and branch.running_var is not None
    mean, deviation, eps, sign = _public(norm, scale)
    with torch.no_grad():
        branch.running_mean.copy_(mean + sign * offset * deviation)
        branch.running_var.copy_((ratio * deviation.square() - eps).clamp_min(0))


def _public(norm: nn.Module, scale: Tensor | None) -> tuple[Tensor, Tensor, float, Tensor]:
    mean, var = on_cpu_float64(norm.running_mean), on_cpu_float64(norm.running_var)  # type: ignore[arg-type]
    eps = float(getattr(norm, "eps", 0.0))
    sign = torch.ones_like(mean)
    if scale is not None and scale.shape == mean.shape:
        sign = torch.where(on_cpu_float64(scale) < 0, -1.0, 1.0).to(mean.dtype)
    return mean, torch.sqrt(var + eps), eps, sign
