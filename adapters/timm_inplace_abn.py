"""timm's wrapper of the inplace_abn package; it runs only where that package is installed."""

from __future__ import annotations

from typing import Any

from timm.layers import inplace_abn
from torch import Tensor

from passportize.adapters.families import BatchStatistics, make_adapters

__all__ = ["ADAPTERS", "InPlaceStatistics"]


class InPlaceStatistics(BatchStatistics):
    """Writes its output over its input, and uses the scale's magnitude only."""

    writes_input = True

    sign_follows_scale = False

    def private_norm(
        self, x: Tensor, scale: Tensor | None, shift: Tensor | None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """As the host computes it, on a copy: the rows may be a slice of the public branch's."""
        return super().private_norm(x.clone(), scale, shift, *args, **kwargs)


ADAPTERS = make_adapters(inplace_abn, {"InplaceAbn": InPlaceStatistics}, globals())
