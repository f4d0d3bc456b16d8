"""timm's FilterResponseNorm and GlobalResponseNorm."""

from __future__ import annotations

from timm.layers import filter_response_norm, grn

from passportize.adapters.families import PerChannel, make_adapters

__all__ = ["ADAPTERS", "ResidualResponse"]


class ResidualResponse(PerChannel):
    """ConvNeXtV2's GRN, ``x + weight * n(x) + bias``: the residual path fixes the sign of x."""

    sign_follows_scale = False


ADAPTERS = {
    **make_adapters(
        filter_response_norm,
        {"FilterResponseNormTlu2d": PerChannel, "FilterResponseNormAct2d": PerChannel},
        globals(),
    ),
    **make_adapters(grn, {"GlobalResponseNorm": ResidualResponse}, globals()),
}
