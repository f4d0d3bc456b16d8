"""torchvision's FrozenBatchNorm2d (detection backbones, timm's frozen stages) and LayerNorm2d."""

from __future__ import annotations

from torchvision.models import convnext
from torchvision.ops import misc

from passportize.adapters.families import AcrossChannelsLessMean, FrozenStatistics, make_adapters

__all__ = ["ADAPTERS"]

ADAPTERS = {
    **make_adapters(misc, {"FrozenBatchNorm2d": FrozenStatistics}, globals()),
    **make_adapters(convnext, {"LayerNorm2d": AcrossChannelsLessMean}, globals()),
}
