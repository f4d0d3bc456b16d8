"""torch's GroupNorm."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from passportize.layers.layer import PassportLayer

__all__ = ["PassportGroupNorm"]


class PassportGroupNorm(PassportLayer, nn.GroupNorm):
    """:class:`torch.nn.GroupNorm` with a private branch."""

    # The sign of a whole group can change together with its scales.
    sign_follows_scale = True

    @classmethod
    def channel_choices(cls, norm: nn.Module) -> tuple[tuple[int, int], ...]:
        """``num_channels`` channels."""
        assert isinstance(norm, nn.GroupNorm)
        return ((norm.num_channels, 0),)

    def private_norm(
        self, x: Tensor, scale: Tensor | None, shift: Tensor | None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """As torch computes it."""
        return F.group_norm(x, self.num_groups, scale, shift, self.eps)
