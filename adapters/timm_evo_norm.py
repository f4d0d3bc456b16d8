"""timm's EvoNorms, in which norm and activation are one formula: ``timm.layers.evo_norm``."""

from __future__ import annotations

from timm.layers import evo_norm
from torch import nn

from passportize.adapters.families import PerChannel, make_adapters

__all__ = ["ADAPTERS", "BatchVariance", "Odd", "Rectified"]


class Odd(PerChannel):
    """S0: odd in x, once the gate ``v`` changes sign together with the row and the scale."""


class Rectified(PerChannel):
    """S1, S2: an activation of fixed sign comes first, so the row's sign is its own."""

    sign_follows_scale = False


class BatchVariance(PerChannel):
    """B1, B2: measured over the batch, with an offset that fixes the sign of x."""

    sign_follows_scale = False

    @classmethod
    def mixes_samples(cls, norm: nn.Module) -> bool:
        """Unless built without its activation, where it only scales and shifts."""
        return bool(norm.apply_act)


class OddBatchVariance(BatchVariance):
    """B0: measured over the batch, odd in x as S0 is."""

    sign_follows_scale = True


ADAPTERS = make_adapters(
    evo_norm,
    {
        "EvoNorm2dB0": OddBatchVariance,
        "EvoNorm2dB1": BatchVariance,
        "EvoNorm2dB2": BatchVariance,
        "EvoNorm2dS0": Odd,
        "EvoNorm2dS0a": Odd,
        "EvoNorm2dS1": Rectified,
        "EvoNorm2dS1a": Rectified,
        "EvoNorm2dS2": Rectified,
        "EvoNorm2dS2a": Rectified,
    },
    globals(),
)
