"""torch's LayerNorm and RMSNorm, over one dimension or several."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from passportize.layers.layer import PassportLayer

__all__ = ["PassportLayerNorm", "PassportRMSNorm", "channels_of_normalized_shape"]


def channels_of_normalized_shape(shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """The last dimension counts channels, or the first where several are normalised together.

    >>> channels_of_normalized_shape((192,))
    ((192, 0),)
    >>> channels_of_normalized_shape((64, 14, 14))
    ((64, 0), (14, 2))
    """
    if len(shape) == 1:
        return ((shape[0], 0),)
    return ((shape[0], 0), (shape[-1], len(shape) - 1))


class PassportLayerNorm(PassportLayer, nn.LayerNorm):
    """:class:`torch.nn.LayerNorm` with a private branch."""

    @classmethod
    def channel_choices(cls, norm: nn.Module) -> tuple[tuple[int, int], ...]:
        """Last or first normalised dimension."""
        assert isinstance(norm, nn.LayerNorm)
        return channels_of_normalized_shape(norm.normalized_shape)

    @classmethod
    def removes_mean(cls, norm: nn.Module) -> bool:
        """If it norms over the channels alone."""
        assert isinstance(norm, nn.LayerNorm)
        return len(norm.normalized_shape) == 1

    def private_norm(
        self, x: Tensor, scale: Tensor | None, shift: Tensor | None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """As torch computes it."""
        shape = self.normalized_shape
        if getattr(self, "weight", None) is None and len(shape) > 1:
            scale, shift = (
                None if side is None else self.passport.spread(side, shape)
                for side in (scale, shift)
            )
        return F.layer_norm(x, shape, scale, shift, self.eps)


class PassportRMSNorm(PassportLayer, nn.RMSNorm):
    """:class:`torch.nn.RMSNorm` with a private branch. It has no shift."""

    @classmethod
    def channel_choices(cls, norm: nn.Module) -> tuple[tuple[int, int], ...]:
        """Last or first normalised dimension."""
        assert isinstance(norm, nn.RMSNorm)
        return channels_of_normalized_shape(norm.normalized_shape)

    def private_norm(
        self, x: Tensor, scale: Tensor | None, shift: Tensor | None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """As torch computes it."""
        shape = self.normalized_shape
        if getattr(self, "weight", None) is None and scale is not None:
            scale = self.passport.spread(scale, shape)
        return F.rms_norm(x, list(shape), scale, self.eps)
