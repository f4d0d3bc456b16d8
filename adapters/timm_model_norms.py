"""Norms that timm defines in its model files: metaformer's without bias, ResMLP's Affine."""

from __future__ import annotations

from timm.models import metaformer, mlp_mixer
from torch import nn

from passportize.adapters.families import AcrossChannelsLessMean, PerChannel, make_adapters

__all__ = ["ADAPTERS", "AffineOnly"]


class AffineOnly(PerChannel):
    """ResMLP's Affine: ``alpha * x + beta`` per channel, no statistics at all."""

    scale_name = "alpha"
    shift_name = "beta"

    @classmethod
    def channel_choices(cls, norm: nn.Module) -> tuple[tuple[int, int], ...]:
        """The last axis of ``alpha``, which is laid out ``[1, 1, channels]``."""
        shape = norm.get_parameter(cls.scale_name).shape
        return ((int(shape[-1]), len(shape) - 1),)


ADAPTERS = {
    **make_adapters(
        metaformer,
        {
            "GroupNorm1NoBias": PerChannel,
            "LayerNorm2dNoBias": AcrossChannelsLessMean,
            "LayerNormNoBias": AcrossChannelsLessMean,
        },
        globals(),
    ),
    **make_adapters(mlp_mixer, {"Affine": AffineOnly}, globals()),
}
