"""Steps that change nothing are taken out of a graph; what changes anything stays."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from passportize.tracing.example_inputs import ExampleInputs
from passportize.tracing.graph import step_name
from passportize.tracing.idle_steps import without_idle_steps
from passportize.tracing.trace import trace_model

Step = Callable[[Tensor], Tensor]


class Between(nn.Module):
    """Two layers with a step between them."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 4)
        self.extra = nn.Linear(6, 6)
        self.factor = nn.Parameter(torch.ones(6))
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.step(self.first(x)))


def summed(x: Tensor) -> Tensor:
    """Sums of differences."""
    return torch.cumsum(torch.diff(x, dim=-1, prepend=torch.zeros_like(x[..., :1])), -1)


def bounded_in_place(x: Tensor) -> Tensor:
    """A bound beyond all values, written into what it reads."""
    return x.clamp_(-50, 50)


def lifted(x: Tensor) -> Tensor:
    """A ReLU where everything is positive, and down again."""
    return torch.relu(x + 50) - 50


def compared(x: Tensor) -> Tensor:
    """The larger of what is there and a constant that is smaller than all of it."""
    return torch.maximum(x, torch.full((6,), -50.0))


def steps_left(model: Between, inputs: Tensor) -> list[str]:
    """Names of what is between the layers."""
    model.eval()
    graph = trace_model(model, inputs, training=False).recordings[0].graph
    before = [node.name for node in graph.nodes]
    found = without_idle_steps(model, graph, ExampleInputs.of(inputs))
    assert [node.name for node in graph.nodes] == before
    found.lint()
    return [step_name(node) for node in found.nodes if node.op == "call_function"]


@pytest.mark.parametrize(
    "step",
    [
        summed,
        bounded_in_place,
        lifted,
        compared,
        lambda x: torch.where(x > 40, x * 2, x),
        lambda x: functional.hardtanh(x, -50.0, 50.0, inplace=True),
    ],
)
def test_what_changes_nothing_is_taken_out(step: Step) -> None:
    model, inputs = Between(step), torch.randn(5, 6)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert steps_left(model, inputs) == []
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "step", [torch.relu, torch.relu_, lambda x: x * 1.01, lambda x: x.clamp(-0.1, 0.1)]
)
def test_what_changes_something_stays(step: Step) -> None:
    assert len(steps_left(Between(step), torch.randn(5, 6))) == 1


def test_branches_that_add_nothing_go_with_their_layers() -> None:
    model = Between(torch.relu)
    inputs = torch.randn(5, 6)
    for step in (
        lambda x: x + 0 * model.extra(x),
        lambda x: x * torch.sigmoid(50 + model.extra(x)),
        lambda x: x + (torch.relu(z := 0 * model.extra(x)) + z),
        lambda x: (x + 0 * model.extra(x)).clamp(-50, 50) + 1e-12 * model.extra(x),
    ):
        model.step = step
        assert steps_left(model, inputs) == []
        graph = trace_model(model, inputs, training=False).recordings[0].graph
        found = without_idle_steps(model, graph, ExampleInputs.of(inputs))
        layers = [str(node.target) for node in found.nodes if node.op == "call_module"]
        assert layers == ["first", "second"]


def test_branches_that_add_little_stay() -> None:
    """A LayerScale may begin at a millionth."""
    model = Between(torch.relu)
    model.step = lambda x: x + 1e-6 * model.extra(x)
    assert len(steps_left(model, torch.randn(5, 6))) == 2


def test_a_factor_of_one_goes_with_its_tensor() -> None:
    model = Between(torch.relu)
    model.step = lambda x: x * model.factor
    graph = trace_model(model.eval(), torch.randn(5, 6), training=False).recordings[0].graph
    found = without_idle_steps(model, graph, ExampleInputs.of(torch.randn(5, 6)))
    assert [node for node in found.nodes if node.op == "get_attr"] == []


def test_without_real_inputs_nothing_is_taken_out() -> None:
    model = Between(summed).eval()
    graph = trace_model(model, torch.randn(5, 6), training=False).recordings[0].graph
    count = len(list(graph.nodes))
    meta = ExampleInputs.of(torch.empty(5, 6, device="meta"))
    for inputs in (None, meta, ExampleInputs.of(lambda model: model(torch.randn(5, 6)))):
        assert len(list(without_idle_steps(model, graph, inputs).nodes)) == count


def test_steps_that_cannot_be_computed_stay() -> None:
    model = Between(summed).eval()
    inputs = torch.randn(5, 6)
    graph = trace_model(model, inputs, training=False).recordings[0].graph
    failing = next(node for node in graph.nodes if step_name(node) == "diff")

    def fail(*_: object, **__: object) -> Tensor:
        raise ValueError("no")

    failing.target = fail
    found: fx.Graph = without_idle_steps(model, graph, ExampleInputs.of(inputs))
    assert len(list(found.nodes)) == len(list(graph.nodes))
