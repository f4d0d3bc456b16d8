"""timm's SplitBatchNorm2d, which is left alone."""

from __future__ import annotations

from timm.layers import split_batchnorm
from torch import nn

from passportize.layers.layer import PassportLayer

__all__ = ["ADAPTERS", "NOT_ADAPTED"]

ADAPTERS: dict[type[nn.Module], type[PassportLayer]] = {}

NOT_ADAPTED: dict[type[nn.Module], str] = {
    split_batchnorm.SplitBatchNorm2d: (
        "sends fixed shares of the batch through auxiliary statistics by their position, which "
        "the rows of a private branch would shift; passportize before or after training with splits"
    )
}
