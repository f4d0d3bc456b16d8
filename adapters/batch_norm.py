"""torch's BatchNorm1d, BatchNorm2d and BatchNorm3d."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from passportize.layers.layer import PassportLayer
from passportize.layers.private_branch import Branch

__all__ = [
    "BatchNormAdapter",
    "PassportBatchNorm1d",
    "PassportBatchNorm2d",
    "PassportBatchNorm3d",
    "averaging_factor",
    "private_batch_norm",
]


def averaging_factor(norm: _BatchNorm, branch: Branch) -> float:
    """Weight of this batch in the private running statistics; counts the batch.

    As torch does: ``momentum``, or one over the number of batches so far where it is None.
    """
    if not (norm.training and branch.num_batches_tracked is not None):
        return 0.0 if norm.momentum is None else norm.momentum
    if norm.momentum is None:
        branch.num_batches_tracked.add_(1)
        return 1.0 / float(branch.num_batches_tracked)
    branch.switch.count_batch(branch.num_batches_tracked)
    return norm.momentum


def private_batch_norm(
    norm: _BatchNorm, branch: Branch, x: Tensor, scale: Tensor | None, shift: Tensor | None
) -> Tensor:
    """Batch normalization with the branch's running statistics and the given affine factors."""
    norm._check_input_dim(x)  # type: ignore[no-untyped-call]
    factor = averaging_factor(norm, branch)
    tracked = branch.running_mean is not None
    return F.batch_norm(
        x,
        branch.running_mean,
        branch.running_var,
        scale,
        shift,
        norm.training or not tracked,
        factor,
        norm.eps,
    )


class BatchNormAdapter(PassportLayer, _BatchNorm):
    """What all BatchNorms of torch share."""

    sign_follows_scale = True

    @classmethod
    def channel_choices(cls, norm: nn.Module) -> tuple[tuple[int, int], ...]:
        """``num_features`` channels."""
        assert isinstance(norm, _BatchNorm)
        return ((norm.num_features, 0),)

    @classmethod
    def mixes_samples(cls, norm: nn.Module) -> bool:
        """Always: the statistics are those of the batch."""
        return True

    def private_norm(
        self, x: Tensor, scale: Tensor | None, shift: Tensor | None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """As torch computes it, with the branch's statistics."""
        return private_batch_norm(self, self.passport, x, scale, shift)


class PassportBatchNorm1d(BatchNormAdapter, nn.BatchNorm1d):
    """:class:`torch.nn.BatchNorm1d` with a private branch."""


class PassportBatchNorm2d(BatchNormAdapter, nn.BatchNorm2d):
    """:class:`torch.nn.BatchNorm2d` with a private branch."""


class PassportBatchNorm3d(BatchNormAdapter, nn.BatchNorm3d):
    """:class:`torch.nn.BatchNorm3d` with a private branch."""
