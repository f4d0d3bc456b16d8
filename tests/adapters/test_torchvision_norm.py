"""Norms of torchvision."""

from __future__ import annotations

import torch
import torchvision
from torch import nn

import passportize as pp
from passportize.signature.site import Role
from tests.support.round_trip import assert_round_trip


def test_frozen_norms_are_bound_on_demand_only() -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 16, 3, bias=False),
            torchvision.ops.FrozenBatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, bias=False),
            nn.BatchNorm2d(16),
            nn.Flatten(),
        )
        return model

    passport = pp.Passport.generate(owner="frozen", date="2026-11-28", secret=bytes(range(32)))
    x = torch.randn(4, 3, 9, 9)
    planned = pp.plan(build(), example_inputs=x)
    assert [site.role for site in planned.sites] == [Role.SKIPPED, Role.BOUND]
    assert "include_frozen=True" in planned.sites[0].reason
    assert len(assert_round_trip(build(), passport, x)) == 1
    assert len(assert_round_trip(build(), passport, x, include_frozen=True)) == 2
