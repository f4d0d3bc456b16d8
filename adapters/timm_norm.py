"""timm's norms without activation: ``timm.layers.norm``."""

from __future__ import annotations

from timm.layers import norm

from passportize.adapters.families import AcrossChannels, PerChannel, make_adapters

__all__ = ["ADAPTERS"]

ADAPTERS = make_adapters(
    norm,
    {
        "GroupNorm": PerChannel,
        "GroupNorm1": PerChannel,
        "LayerNorm": AcrossChannels,
        "LayerNormFp32": AcrossChannels,
        "LayerNorm2d": AcrossChannels,
        "LayerNorm2dFp32": AcrossChannels,
        "LayerNorm3d": AcrossChannels,
        "LayerNorm3dFp32": AcrossChannels,
        "LayerNormExp2d": AcrossChannels,
        "RmsNorm": AcrossChannels,
        "RmsNormFp32": AcrossChannels,
        "RmsNorm2d": AcrossChannels,
        "RmsNorm2dFp32": AcrossChannels,
        "SimpleNorm": AcrossChannels,
        "SimpleNormFp32": AcrossChannels,
        "SimpleNorm2d": AcrossChannels,
        "SimpleNorm2dFp32": AcrossChannels,
    },
    globals(),
)
