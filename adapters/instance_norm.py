"""torch's InstanceNorm1d, 2d and 3d, with and without running statistics."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from passportize.layers.layer import PassportLayer

__all__ = [
    "InstanceNormAdapter",
    "PassportInstanceNorm1d",
    "PassportInstanceNorm2d",
    "PassportInstanceNorm3d",
]


class InstanceNormAdapter(PassportLayer, _InstanceNorm):
    """What all InstanceNorms of torch share."""

    sign_follows_scale = True

    @classmethod
    def channel_choices(cls, norm: nn.Module) -> tuple[tuple[int, int], ...]:
        """``num_features`` channels."""
        assert isinstance(norm, _InstanceNorm)
        return ((norm.num_features, 0),)

    def private_norm(
        self, x: Tensor, scale: Tensor | None, shift: Tensor | None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """As torch computes it, with the branch's statistics; accepts input without a batch too."""
        self._check_input_dim(x)  # type: ignore[no-untyped-call]
        single = x.dim() == self._get_no_batch_dim()  # type: ignore[no-untyped-call]
        batch = x.unsqueeze(0) if single else x
        out = F.instance_norm(
            batch,
            self.passport.running_mean,
            self.passport.running_var,
            scale,
            shift,
            self.training or not self.track_running_stats,
            self.momentum if self.momentum is not None else 0.0,
            self.eps,
        )
        return out.squeeze(0) if single else out


class PassportInstanceNorm1d(InstanceNormAdapter, nn.InstanceNorm1d):
    """:class:`torch.nn.InstanceNorm1d` with a private branch."""


class PassportInstanceNorm2d(InstanceNormAdapter, nn.InstanceNorm2d):
    """:class:`torch.nn.InstanceNorm2d` with a private branch."""


class PassportInstanceNorm3d(InstanceNormAdapter, nn.InstanceNorm3d):
    """:class:`torch.nn.InstanceNorm3d` with a private branch."""
