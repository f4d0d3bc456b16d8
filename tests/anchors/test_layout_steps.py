"""Channels behind permutations, reshapes and cuts."""

from __future__ import annotations

from operator import itemgetter

import pytest
import torch
from torch import nn

from tests.support.anchor_models import Built, Case, assert_bound, conv

CASES: list[Case] = [
    (
        "channels last",
        lambda: Built(
            lambda m, x: m.norm(m.a(x).permute(0, 2, 3, 1)), a=conv(3, 8), norm=nn.LayerNorm(8)
        ),
        (2, 3, 6, 4),
        ("upstream", ("a.weight", 8, 0, 1)),
    ),
    (
        "windows",
        lambda: Built(
            lambda m, x: m.norm(
                m.a(x).view(2, 4, 2, 4, 2, 8).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 8)
            ),
            a=nn.Linear(3, 8),
            norm=nn.LayerNorm(8),
        ),
        (2, 8, 8, 3),
        ("upstream", ("a.weight", 8, 0, 1)),
    ),
    (
        "a dense layer on flattened tokens",
        lambda: Built(
            lambda m, x: m.norm(m.a(x).flatten(0, 1)).reshape(2, 5, 8),
            a=nn.Linear(6, 8),
            norm=nn.BatchNorm1d(8),
        ),
        (2, 5, 6),
        ("upstream", ("a.weight", 8, 0, 1)),
    ),
    (
        "sum of parallel groups of channels",
        lambda: Built(
            lambda m, x: m.norm(m.a(x).view(2, 2, 8, 4, 4).sum(1)),
            a=conv(3, 16),
            norm=nn.BatchNorm2d(8),
        ),
        (2, 3, 4, 4),
        ("upstream", ("a.weight", 8, 0, 2)),
    ),
    (
        "one of two maps that were laid side by side",
        lambda: Built(
            lambda m, x: m.norm(torch.stack([m.a(x), m.b(x)], 2).flatten(2)[..., 8:]),
            a=nn.Linear(6, 8),
            b=nn.Linear(6, 8),
            norm=nn.LayerNorm(8),
        ),
        (2, 5, 6),
        ("upstream", ("b.weight", 8, 0, 1)),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=itemgetter(0))
def test_rules(case: Case) -> None:
    assert_bound(*case)
