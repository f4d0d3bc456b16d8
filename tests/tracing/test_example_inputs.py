"""What a model is read with: the caller's input, a configuration, or a guess."""

from __future__ import annotations

import types

import pytest
import torch
from torch import Tensor, nn

from passportize.errors import InvalidArgument
from passportize.tracing.example_inputs import ExampleInputs
from passportize.tracing.trace import trace_model
from tests.support.traced import Pooling

pytestmark = pytest.mark.usefixtures("nothing_patched")


def test_a_function_may_run_the_model() -> None:
    def run(model: nn.Module) -> Tensor:
        result = model(torch.ones(4, 3), batch=torch.tensor([0, 1, 1, 1]))
        assert isinstance(result, Tensor)
        return result

    trace = trace_model(Pooling(), run, norms={"norm"})
    assert trace.complete, trace.reason
    assert trace.called == {"", "lin", "norm"}


def test_inputs_are_read_from_the_configuration() -> None:
    class Configured(nn.Sequential):
        default_cfg = {"input_size": (3, 16, 16)}  # noqa: RUF012

    model = Configured(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    trace = trace_model(model, norms={"1"})
    assert trace.recordings[0].graph.find_nodes(op="placeholder")[0].meta["shape"] == (2, 3, 16, 16)
    assert not trace.notes


@pytest.mark.parametrize("side", [20, (20, 16)])
def test_transformers_configurations_are_read(side: int | tuple[int, int]) -> None:
    class Sized(nn.Sequential):
        def forward(self, pixel_values: Tensor) -> Tensor:
            if pixel_values.shape[2] != 20:
                raise ValueError("another size")
            return super().forward(pixel_values)

    model = Sized(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    model.config = types.SimpleNamespace(image_size=side, num_channels=1)
    trace = trace_model(model, norms={"1"})
    assert trace.complete and not trace.notes


def test_a_configuration_of_other_channels_is_not_believed() -> None:
    class Configured(nn.Sequential):
        pretrained_cfg = {"input_size": (3, 16, 20)}  # noqa: RUF012

    trace = trace_model(Configured(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)), norms={"1"})
    assert trace.complete
    assert trace.notes == ["read with a guessed input of shape (2, 1, 16, 20)"]


def test_token_models_are_given_tokens() -> None:
    model = nn.Sequential(nn.Embedding(10, 8), nn.LayerNorm(8), nn.Linear(8, 4))
    assert trace_model(model, norms={"1"}).complete


def test_a_guessed_size_is_said() -> None:
    trace = trace_model(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(3600, 2)))
    assert trace.complete
    assert trace.notes == ["read with a guessed input of shape (2, 3, 32, 32)"]


@pytest.mark.parametrize(
    ("value", "message"),
    [((2, 3, 8), r"Pass torch\.zeros\(\(2, 3, 8\)\) instead"), ({1: torch.zeros(1)}, "a tuple")],
)
def test_what_is_no_input(value: object, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        trace_model(nn.Linear(3, 3), value)


def test_example_inputs_are_copied() -> None:
    x = torch.zeros(2)
    inputs = ExampleInputs.of({"x": x, "more": [x, (1, "a")]})
    copied = inputs.copy()
    copied.kwargs["x"].add_(1)
    assert x.tolist() == [0, 0]
    assert [name for name, _ in inputs.tensors()] == ["x", "more_0"]
