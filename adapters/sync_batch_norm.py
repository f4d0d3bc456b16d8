"""torch's SyncBatchNorm: the private branch synchronises as the public one does."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from passportize.adapters.batch_norm import BatchNormAdapter, averaging_factor, private_batch_norm
from passportize.layers.private_branch import Branch

__all__ = ["PassportSyncBatchNorm", "synchronised_batch_norm"]


class PassportSyncBatchNorm(BatchNormAdapter, nn.SyncBatchNorm):
    """:class:`torch.nn.SyncBatchNorm` with a private branch."""

    def private_norm(
        self, x: Tensor, scale: Tensor | None, shift: Tensor | None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Statistics over all processes in training, as the public branch; plain otherwise."""
        self._check_non_zero_input_channels(x)
        group = self.process_group or (dist.group.WORLD if _distributed() else None)
        if not self.training or group is None or dist.get_world_size(group) == 1:
            return private_batch_norm(self, self.passport, x, scale, shift)
        self._check_input_dim(x)
        return synchronised_batch_norm(self, self.passport, x, scale, shift, group)


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def synchronised_batch_norm(
    norm: _BatchNorm,
    branch: Branch,
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    group: dist.ProcessGroup,
) -> Tensor:
    """Batch normalization in training with statistics over all processes of a group.

    Written with a differentiable all-reduce, so that it runs on every backend. The mean comes
    first and the squares are taken around it, which is exact where sums of squares cancel.
    """
    from torch.distributed.nn.functional import all_reduce

    axes = [axis for axis in range(x.dim()) if axis != 1]
    layout = [1, -1] + [1] * (x.dim() - 2)
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    count = exact.new_tensor([x.numel() / x.shape[1]])
    sums = torch.cat([exact.sum(axes), count])
    totals: Tensor = all_reduce(sums, group=group)  # type: ignore[no-untyped-call]
    total = totals[-1]
    mean = totals[:-1] / total
    centred = exact - mean.view(layout)
    squares: Tensor = all_reduce(  # type: ignore[no-untyped-call]
        centred.square().sum(axes), group=group
    )
    variance = squares / total
    factor = averaging_factor(norm, branch)
    if branch.running_mean is not None and branch.running_var is not None:
        with torch.no_grad():
            unbiased = variance * (total / (total - 1))
            branch.running_mean.lerp_(mean.to(branch.running_mean.dtype), factor)
            branch.running_var.lerp_(unbiased.to(branch.running_var.dtype), factor)
    out = centred * torch.rsqrt(variance + norm.eps).view(layout)
    if scale is not None:
        out = out * scale.to(out.dtype).view(layout)
    if shift is not None:
        out = out + shift.to(out.dtype).view(layout)
    return out.to(x.dtype)
