"""Which adapter a norm has."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import passportize as pp
from passportize.adapters.layer_norm import PassportLayerNorm
from passportize.errors import SurgeryError
from passportize.layers.layer import PassportLayer
from passportize.layers.registry import adapter_for
from tests.support.norm_cases import passportized
from tests.support.round_trip import assert_round_trip


class UnknownNorm(nn.LayerNorm):
    """A subclass that nobody registered: never swapped as its parent."""


class CustomNorm(nn.Module):
    """Somebody's norm, with its factors under other names and a second output scale inside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(channels))
        self.b = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        return torch.nn.functional.layer_norm(x, (x.shape[-1],)) * self.g * gain + self.b


class PassportCustomNorm(PassportLayer, CustomNorm):
    """An adapter in two lines."""

    scale_name = "g"
    shift_name = "b"


def test_a_subclass_is_never_swapped_as_its_parent() -> None:
    assert adapter_for(UnknownNorm(8)) is None
    layer = passportized(UnknownNorm(8))
    assert type(layer) is not PassportLayerNorm
    assert type(layer).host_class is UnknownNorm
    with pytest.raises(SurgeryError, match="no adapter"):
        passportized(UnknownNorm(8, elementwise_affine=False))


@pytest.mark.usefixtures("own_adapters")
def test_registering_an_own_adapter() -> None:
    pp.register_adapter(CustomNorm, PassportCustomNorm)
    model = nn.Sequential(nn.Linear(9, 16), CustomNorm(16), nn.ReLU(), nn.Linear(16, 4))
    passport = pp.Passport.generate(owner="custom", date="2026-11-28", secret=bytes(range(32)))
    assert len(assert_round_trip(model, passport, torch.randn(5, 9))) == 1
