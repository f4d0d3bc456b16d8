"""Weights that read what a norm puts out."""

from __future__ import annotations

from operator import itemgetter

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.support.anchor_models import Built, Case, assert_bound, conv

CASES: list[Case] = [
    (
        "downstream",
        lambda: Built(
            lambda m, x: m.a(F.relu(m.norm(x)).transpose(1, 2)),
            norm=nn.LayerNorm(6),
            a=nn.Conv1d(6, 4, 1),
        ),
        (2, 5, 6),
        ("downstream", ("a.weight", 6, 0, 1)),
    ),
    (
        "downstream through a concatenation",
        lambda: Built(
            lambda m, x: m.a(torch.cat([x[:, :2], m.norm(x)], 1)),
            norm=nn.BatchNorm2d(6),
            a=conv(8, 4),
        ),
        (2, 6, 5, 5),
        ("downstream", ("a.weight", 6, 2, 1)),
    ),
    (
        "downstream through heads laid side by side",
        lambda: Built(
            lambda m, x: m.a(m.norm(x @ x.mT @ x).transpose(1, 2).reshape(2, 5, 12)),
            norm=nn.LayerNorm(4),
            a=nn.Linear(12, 6),
        ),
        (2, 3, 5, 4),
        ("downstream", ("a.weight", 4, 0, 3)),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=itemgetter(0))
def test_rules(case: Case) -> None:
    assert_bound(*case)
