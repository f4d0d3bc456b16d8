"""Which rows of which parameter a linear map uses."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, weight_norm

from tests.support.anchor_models import Built, Case, assert_bound, brief, conv, search


def _tied() -> nn.Module:
    a, b = nn.Linear(6, 6), nn.Linear(6, 6)
    b.weight = a.weight
    return Built(lambda m, x: m.norm(m.b(x)), a=a, b=b, norm=nn.LayerNorm(6))


CASES: list[Case] = [
    (
        "depthwise",
        lambda: Built(
            lambda m, x: m.norm(m.b(m.a(x))),
            a=conv(3, 8),
            b=conv(8, 8, 3, groups=8),
            norm=nn.BatchNorm2d(8),
        ),
        (2, 3, 8, 8),
        ("upstream", ("b.weight", 8, 0, 1)),
    ),
    (
        "transposed",
        lambda: Built(
            lambda m, x: m.norm(m.a(x)),
            a=nn.ConvTranspose2d(4, 6, 2, 2, groups=2),
            norm=nn.BatchNorm2d(6),
        ),
        (2, 4, 8, 8),
        ("upstream", ("a.weight", 6, 0, 1)),
    ),
    (
        "functional linear on half a weight",
        lambda: Built(
            lambda m, x: m.norm(F.linear(x, m.weight[8:])),
            weight=nn.Parameter(torch.zeros(16, 6)),
            norm=nn.LayerNorm(8),
        ),
        (2, 5, 6),
        ("upstream", ("weight", 8, 8, 1)),
    ),
    (
        "product with a matrix of inputs by outputs",
        lambda: Built(
            lambda m, x: m.norm(x @ m.weight + m.bias),
            weight=nn.Parameter(torch.zeros(6, 8)),
            bias=nn.Parameter(torch.zeros(8)),
            norm=nn.LayerNorm(8),
        ),
        (2, 5, 6),
        ("upstream", ("weight", 8, 0, 1)),
    ),
    (
        "standardized weight",
        lambda: Built(
            lambda m, x: m.norm(
                F.conv2d(
                    x,
                    F.batch_norm(m.weight.reshape(1, 8, -1), None, None, training=True).reshape_as(
                        m.weight
                    )
                    * m.gain,
                )
            ),
            weight=nn.Parameter(torch.zeros(8, 3, 1, 1)),
            gain=nn.Parameter(torch.ones(8, 1, 1, 1)),
            norm=nn.BatchNorm2d(8),
        ),
        (2, 3, 8, 8),
        ("upstream", ("weight", 8, 0, 1)),
    ),
    (
        "tied weights have their first name",
        lambda: _tied(),
        (2, 6),
        ("upstream", ("a.weight", 6, 0, 1)),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=itemgetter(0))
def test_rules(case: Case) -> None:
    assert_bound(*case)


@pytest.mark.parametrize(
    "wrap",
    [
        parametrizations.spectral_norm,
        parametrizations.weight_norm,
        lambda m: weight_norm(m),
        lambda m: prune.l1_unstructured(m, "weight", 0.3),
    ],
    ids=["spectral", "weight_norm", "old weight_norm", "pruned"],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_computed_weights(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = Built(lambda m, x: m.norm(m.a(x)), a=wrap(nn.Linear(6, 8)), norm=nn.LayerNorm(8))
    before = {key: value.clone() for key, value in model.train().state_dict().items()}
    found = search(model)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert brief(found) == ("upstream", ("a.weight", 8, 0, 1))
    assert found.notes[1:] == [
        "a.weight is computed from other parameters, and bound as the layer uses it"
    ]
