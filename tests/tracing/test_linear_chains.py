"""Chains of linear steps: where they start and end, and what lies between their steps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from passportize.surgery.norms import find_norms
from passportize.tracing.linear_chains import Chain, Other, Unit, units_of
from passportize.tracing.trace import trace_model

EXAMPLE = torch.randn(2, 3, 8, 8)


class Net(nn.Module):
    """Two convolutions with a norm, and something between them."""

    def __init__(self, between: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.second, self.scale = nn.Conv2d(6, 6, 1), nn.Parameter(torch.ones(6, 1, 1))
        self.layer_norm = nn.LayerNorm(6, elementwise_affine=False)
        self.head = nn.Linear(6, 2)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.between(self, self.norm(self.first(x))))
        return self.head(torch.relu(x).mean((2, 3)))


def found(model: nn.Module, shared: bool = False) -> list[Unit]:
    norms = [norm.name for norm in find_norms(model)]
    trace = trace_model(model.eval(), EXAMPLE, norms=norms, training=False)
    return units_of(model, trace.recordings[0].graph, shared)


@pytest.mark.parametrize(
    ("between", "joined"),
    [
        (lambda _, x: x, True),
        (lambda _, x: nn.functional.dropout(x, 0.5, False), True),
        (lambda _, x: nn.functional.avg_pool2d(x, 2), True),
        (lambda _, x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), True),
        (lambda _, x: x.flatten(2).unsqueeze(-1), True),
        (lambda _, x: torch.relu(x), False),
        (lambda _, x: x + 1, False),
        (lambda _, x: x.flip(1), False),
        (lambda _, x: x.transpose(1, 2), False),
        (lambda _, x: nn.functional.max_pool2d(x, 2), False),
        (lambda net, x: x * net.scale, False),
        (lambda _, x: torch.cat([x[:, :3], x[:, 3:]], 1), False),
    ],
)
def test_what_may_lie_between(between: Callable[[nn.Module, Tensor], Tensor], joined: bool) -> None:
    chains = [unit.modules for unit in found(Net(between)) if isinstance(unit, Chain)]
    if chains[0][-1] == "second":
        assert joined and chains == [("first", "norm", "second"), ("head",)]
    else:
        assert not joined and chains == [("first", "norm"), ("second",), ("head",)]


def test_everything_with_parameters_is_there_in_order() -> None:
    model = Net(lambda net, x: net.layer_norm((x * net.scale).transpose(1, 3)).transpose(1, 3))
    units = found(model)
    assert units == [
        Chain(("first", "norm")),
        Other(("scale",)),
        Other((), "layer_norm"),
        Chain(("second",)),
        Chain(("head",)),
    ]


class Fork(nn.Module):
    """Several steps read one tensor, and one layer is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.put_in = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1)
        self.one, self.other, self.twice = (nn.Conv2d(6, 6, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.put_in(torch.relu(self.stem(x)))
        x = torch.relu(x) + self.one(x) + self.other(x)
        return self.twice(self.twice(x))


def test_layers_that_several_read_and_layers_called_twice() -> None:
    twice = Other(("twice.weight", "twice.bias"))
    alone = [Chain((name,)) for name in ("stem", "put_in", "one", "other")]
    assert found(Fork()) == [*alone, twice]
    assert found(Fork(), shared=True) == [
        Chain(("stem",)),
        Chain(("put_in",)),
        Chain(("put_in", "one")),
        Chain(("put_in", "other")),
        twice,
    ]
