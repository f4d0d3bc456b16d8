"""timm's norms with drop and activation inside: ``timm.layers.norm_act``."""

from __future__ import annotations

from typing import Any, cast

import torch.distributed as dist
from timm.layers import norm_act
from torch import Tensor

from passportize.adapters.families import (
    AcrossChannels,
    AcrossChannelsLessMean,
    BatchStatistics,
    FrozenStatistics,
    PerChannel,
    make_adapters,
)
from passportize.adapters.sync_batch_norm import PassportSyncBatchNorm

__all__ = ["ADAPTERS", "SynchronisedAct"]


class SynchronisedAct(BatchStatistics):
    """timm's SyncBatchNormAct: torch's SyncBatchNorm, then drop and activation."""

    def private_norm(
        self, x: Tensor, scale: Tensor | None, shift: Tensor | None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """The private pass of :class:`PassportSyncBatchNorm`, then the host's drop and act."""
        normed = PassportSyncBatchNorm.private_norm(
            cast(PassportSyncBatchNorm, self), x, scale, shift
        )
        for name in ("drop", "act"):
            if hasattr(self, name):
                normed = getattr(self, name)(normed)
        return normed


ADAPTERS = make_adapters(
    norm_act,
    {
        "BatchNormAct2d": BatchStatistics,
        "SyncBatchNormAct": SynchronisedAct if dist.is_available() else BatchStatistics,
        "FrozenBatchNormAct2d": FrozenStatistics,
        "GroupNormAct": PerChannel,
        "GroupNorm1Act": PerChannel,
        "LayerNormAct": AcrossChannelsLessMean,
        "LayerNormActFp32": AcrossChannelsLessMean,
        "LayerNormAct2d": AcrossChannelsLessMean,
        "LayerNormAct2dFp32": AcrossChannelsLessMean,
        "RmsNormAct": AcrossChannels,
        "RmsNormActFp32": AcrossChannels,
        "RmsNormAct2d": AcrossChannels,
        "RmsNormAct2dFp32": AcrossChannels,
    },
    globals(),
)
