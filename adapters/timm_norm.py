"""timm's norms without activation: ``timm.layers.norm``."""

from __future__ import annotations

from timm.layers import norm

from passportize.adapters.families import (
    AcrossChannels,
    AcrossChannelsLessMean,
    PerChannel,
    make_adapters,
)

__all__ = ["ADAPTERS"]

ADAPTERS = make_adapters(
    norm,
    {
        "GroupNorm": PerChannel,
        "GroupNorm1": PerChannel,
        "LayerNorm": AcrossChannelsLessMean,
        "LayerNormFp32": AcrossChannelsLessMean,
        "LayerNorm2d": AcrossChannelsLessMean,
        "LayerNorm2dFp32": AcrossChannelsLessMean,
        "LayerNorm3d": AcrossChannelsLessMean,
        "LayerNorm3dFp32": AcrossChannelsLessMean,
        "LayerNormExp2d": AcrossChannelsLessMean,
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
