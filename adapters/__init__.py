"""The support matrix: one file per family of norms, imported as ``passportize.adapters``."""

from __future__ import annotations

if __name__ != "passportize.adapters":
    raise ImportError(
        "this folder is the subpackage passportize.adapters, not a package of its own; "
        "import passportize.adapters (the PyPI package called 'adapters' is something else)"
    )

from torch import nn

from passportize.adapters.batch_norm import (
    PassportBatchNorm1d,
    PassportBatchNorm2d,
    PassportBatchNorm3d,
)
from passportize.adapters.functional_norm import PassportFunctionalNorm
from passportize.adapters.group_norm import PassportGroupNorm
from passportize.adapters.instance_norm import (
    PassportInstanceNorm1d,
    PassportInstanceNorm2d,
    PassportInstanceNorm3d,
)
from passportize.adapters.layer_norm import PassportLayerNorm, PassportRMSNorm
from passportize.adapters.sync_batch_norm import PassportSyncBatchNorm
from passportize.layers.functional_norm import FunctionalNorm
from passportize.layers.layer import PassportLayer
from passportize.layers.registry import FRAMEWORKS, NOT_ADAPTED, register_adapter

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
    FunctionalNorm: PassportFunctionalNorm,
}

NOT_ADAPTED.update(
    dict.fromkeys(
        (nn.LocalResponseNorm, nn.CrossMapLRN2d),
        "has no scale and no statistics per channel, so nothing to bind",
    )
)

FRAMEWORKS.update(
    {
        framework: tuple(f"passportize.adapters.{name}" for name in names)
        for framework, names in {
            "timm.layers": (
                "timm_norm",
                "timm_norm_act",
                "timm_evo_norm",
                "timm_response_norm",
                "timm_inplace_abn",
                "timm_split_batch_norm",
            ),
            "timm.models": ("timm_model_norms",),
            "torchvision.models": ("torchvision_norm",),
            "torch_geometric.nn.norm": ("pyg",),
        }.items()
    }
)

for _norm, _adapter in TORCH.items():
    register_adapter(_norm, _adapter)
