"""Norms of third parties: never taken for their parents, bound by two lines."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import passportize as pp
from passportize.signature.site import Role
from tests.support.round_trip import assert_round_trip

PASSPORT = pp.Passport.generate(owner="Own", secret=bytes(range(32)), date="2026-01-01")


class TransposingNorm(nn.BatchNorm1d):
    """A batch norm for points ``[B, N, C]`` that transposes, as point-cloud libraries have it."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 3:
            return super().forward(x.transpose(1, 2)).transpose(1, 2)
        return super().forward(x)


class UnknownNorm(TransposingNorm):
    """The same without an adapter."""


class PassportTransposingNorm(pp.PassportLayer, TransposingNorm):
    sign_follows_scale = True


class WrappingNorm(nn.Module):
    """Transposes around a norm that it holds."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


class Net(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.lin1 = nn.Linear(16, 24)
        self.norm1 = norm
        self.lin2 = nn.Linear(24, 24)
        self.norm2 = nn.LayerNorm(24)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(self.lin2(self.norm1(self.lin1(x)).relu())).amax(dim=1)


def test_a_subclass_without_an_adapter_runs_its_own_forward_not_its_parents() -> None:
    x = torch.randn(6, 9, 16)
    model = Net(UnknownNorm(24))
    site = pp.plan(model, example_inputs=x).sites[0]
    assert site.role is Role.BOUND and site.layer_type.endswith("UnknownNorm")
    assert_round_trip(model, PASSPORT, x)


@pytest.mark.usefixtures("own_adapters")
def test_an_empty_adapter_runs_the_norms_own_forward() -> None:
    pp.register_adapter(TransposingNorm, PassportTransposingNorm)
    x = torch.randn(6, 9, 16)
    model = Net(TransposingNorm(24))
    site = pp.plan(model, example_inputs=x).sites[0]
    assert site.role is Role.BOUND and site.anchor is not None
    assert site.anchor.parts[0].weight == "lin1.weight"
    for preset in ("keyed", "paper", "signature"):
        assert_round_trip(model, PASSPORT, x, config=getattr(pp.PassportConfig, preset)())


def test_a_norm_inside_a_wrapper_is_the_site() -> None:
    x = torch.randn(6, 9, 16)
    model = Net(WrappingNorm(24))
    sites = {site.name: site for site in pp.plan(model, example_inputs=x).sites}
    assert set(sites) == {"norm1.norm", "norm2"}
    assert sites["norm1.norm"].role is Role.BOUND
    assert_round_trip(model, PASSPORT, x)
