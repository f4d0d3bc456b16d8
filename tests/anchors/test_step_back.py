"""Steps over which the channels of a norm are followed to what made them."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.anchor_models import Built, Case, assert_bound, conv


def _write_rows(model: Any, x: Tensor) -> Tensor:
    out = torch.zeros(2, 3, 8)
    for i in range(3):
        out[:, i] = model.a(x)
    result = model.norm(out)
    assert isinstance(result, Tensor)
    return result


CASES: list[Case] = [
    (
        "activation, pooling and dropout",
        lambda: Built(
            lambda m, x: m.norm(F.dropout(F.max_pool2d(F.relu(m.a(x)), 2), 0.1).flatten(1)),
            a=conv(3, 8),
            norm=nn.BatchNorm1d(8),
        ),
        (2, 3, 2, 2),
        ("upstream", ("a.weight", 8, 0, 1)),
    ),
    (
        "a gate is not the producer",
        lambda: Built(
            lambda m, x: m.norm((y := m.a(x)) * m.g(y.mean((2, 3), keepdim=True)).sigmoid()),
            a=conv(3, 8),
            g=conv(8, 8),
            norm=nn.BatchNorm2d(8),
        ),
        (2, 3, 8, 8),
        ("upstream", ("a.weight", 8, 0, 1)),
    ),
    (
        "a cut through a concatenation",
        lambda: Built(
            lambda m, x: m.norm(torch.cat([m.a(x), m.b(x)], 1)[:, 3:7]),
            a=conv(3, 4),
            b=conv(3, 5),
            norm=nn.BatchNorm2d(4),
        ),
        (2, 3, 8, 8),
        ("concat", ("a.weight", 1, 3, 1), ("b.weight", 3, 0, 1)),
    ),
    (
        "a class token",
        lambda: Built(
            lambda m, x: m.norm(
                torch.cat([m.token.expand(len(x), -1, -1), m.a(x).flatten(2).transpose(1, 2)], 1)
            ),
            token=nn.Parameter(torch.zeros(1, 1, 8)),
            a=conv(3, 8, 1),
            norm=nn.LayerNorm(8),
        ),
        (2, 3, 4, 4),
        ("upstream", ("a.weight", 8, 0, 1)),
    ),
    (
        "an index is not a producer",
        lambda: Built(
            lambda m, x: m.norm(torch.gather(y := m.a(x), 1, m.b(x + y.mean()).argsort(1))),
            a=nn.Linear(6, 8),
            b=nn.Linear(6, 8),
            norm=nn.LayerNorm(8),
        ),
        (2, 5, 6),
        ("upstream", ("a.weight", 8, 0, 1)),
    ),
    (
        "gather, scale and scatter",
        lambda: Built(
            lambda m, x: m.norm(
                x.new_zeros(5, 8).index_add_(
                    0, torch.tensor([0, 1, 1, 4]), m.a(x)[torch.tensor([3, 1, 1, 0])] * 0.5
                )
            ),
            a=nn.Linear(6, 8),
            norm=nn.BatchNorm1d(8),
        ),
        (4, 6),
        ("upstream", ("a.weight", 8, 0, 1)),
    ),
    (
        "written into a buffer that starts empty",
        lambda: Built(_write_rows, a=nn.Linear(6, 8), norm=nn.LayerNorm(8)),
        (2, 6),
        ("upstream", ("a.weight", 8, 0, 1)),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=itemgetter(0))
def test_rules(case: Case) -> None:
    assert_bound(*case)
