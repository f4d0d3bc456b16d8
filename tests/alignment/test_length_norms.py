"""RMSNorms are known by what they compute."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from passportize.alignment.length_norms import offset_of
from tests.support.looked_through import LengthNorm, OnePlusNorm


class ByMaximum(LengthNorm):
    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x / x.abs().amax(-1, keepdim=True)


class Centred(LengthNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(-1, keepdim=True))


class WithShift(LengthNorm):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.bias = nn.Parameter(torch.zeros(width))


class OfPictures(LengthNorm):
    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4:
            raise ValueError("pictures alone")
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


@pytest.mark.parametrize(
    ("kind", "offset"),
    [
        (nn.RMSNorm, 0.0),
        (LengthNorm, 0.0),
        (OnePlusNorm, 1.0),
        (nn.LayerNorm, None),
        (ByMaximum, None),
        (Centred, None),
        (WithShift, None),
        (OfPictures, None),
    ],
)
def test_by_what_they_compute(kind: type[nn.Module], offset: float | None) -> None:
    assert offset_of(kind(24)) == offset


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_in_any_precision(dtype: torch.dtype) -> None:
    assert offset_of(LengthNorm(24).to(dtype)) == 0.0
    assert offset_of(LengthNorm(24).to("meta")) is None


def test_hooks_of_the_user_are_left_alone() -> None:
    norm, called = LengthNorm(24), []
    norm.register_forward_hook(lambda *_: called.append(1))
    assert offset_of(norm) == 0.0 and not called
