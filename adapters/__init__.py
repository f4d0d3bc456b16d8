"""The support matrix: one file per family of norms, imported as ``passportize.adapters``."""

from __future__ import annotations

if __name__ != "passportize.adapters":
    raise ImportError(
        "this folder is the subpackage passportize.adapters, not a package of its own; "
        "import passportize.adapters (the PyPI package called 'adapters' is something else)"
    )

import sys

from torch import nn

from passportize.adapters.batch_norm import (
    PassportBatchNorm1d,
    PassportBatchNorm2d,
    PassportBatchNorm3d,
)
from passportize.adapters.group_norm import PassportGroupNorm
from passportize.adapters.instance_norm import (
    PassportInstanceNorm1d,
    PassportInstanceNorm2d,
    PassportInstanceNorm3d,
)
from passportize.adapters.layer_norm import PassportLayerNorm, PassportRMSNorm
from passportize.adapters.sync_batch_norm import PassportSyncBatchNorm
from passportize.layer import PassportLayer
from passportize.registry import register_adapter

TORCH: dict[type[nn.Module], type[PassportLayer]] = {
    nn.BatchNorm1d: PassportBatchNorm1d,
    nn.BatchNorm2d: PassportBatchNorm2d,
    nn.BatchNorm3d: PassportBatchNorm3d,
    nn.SyncBatchNorm: PassportSyncBatchNorm,
    nn.GroupNorm: PassportGroupNorm,
    nn.LayerNorm: PassportLayerNorm,
    nn.RMSNorm: PassportRMSNorm,
    nn.InstanceNorm1d: PassportInstanceNorm1d,
    nn.InstanceNorm2d: PassportInstanceNorm2d,
    nn.InstanceNorm3d: PassportInstanceNorm3d,
}

# Norms that stay as they are, and why.
NOT_ADAPTED: dict[type[nn.Module], str] = {
    nn.LocalResponseNorm: "has no scale and no statistics per channel, so nothing to bind",
    nn.CrossMapLRN2d: "has no scale and no statistics per channel, so nothing to bind",
}

for _norm, _adapter in TORCH.items():
    register_adapter(_norm, _adapter)


def register_loaded_frameworks() -> None:
    """Register the adapters of frameworks that the program has imported already.

    A model can only hold timm norms if timm is loaded, so nothing is imported that is not there.
    """
    if "timm.layers" in sys.modules:
        pass
