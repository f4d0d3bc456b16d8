"""Layers cut in two or multiplied change no output; what cannot be changed is said."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from passportize.attacks import Means, run_attack
from passportize.attacks.cut_layers import WAYS, cut_layers
from passportize.attacks.multiply_layers import multiply_layers
from passportize.errors import InvalidArgument
from tests.support.depths import Chained
from tests.support.widths import EXAMPLE, FAMILIES, as_trained


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(EXAMPLE)
    return found


def test_every_layer_becomes_two() -> None:
    model = as_trained(FAMILIES["residual"], 0)
    means = Means(example_inputs=EXAMPLE)
    outcome = run_attack("cut-layers", model, means)
    assert outcome.figures["layers changed"] == 7
    assert torch.allclose(outputs(outcome.model), outputs(model), atol=1e-5)
    assert isinstance(outcome.model.stem[0], nn.Sequential)
    kernels = [tuple(layer.kernel_size) for layer in outcome.model.stem[0]]
    assert sorted(kernels) == [(1, 1), (3, 3)]
    # It is a model like any other: it saves, loads and trains.
    outcome.model.train()(EXAMPLE).sum().backward()
    assert outcome.model.stem[0][0].weight.grad is not None


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ["residual", "dense", "inverted", "transformer"])
def test_outputs_stay(family: str, way: str) -> None:
    model = as_trained(FAMILIES[family], 0)
    before = outputs(model)
    cut_layers(model, torch.Generator().manual_seed(2), way=way, example_inputs=EXAMPLE)
    after = outputs(model)
    assert float((after - before).abs().max()) < 1e-4 * float(before.abs().max())


class Grouped(nn.Module):
    """Two groups, activations that are modules, and a step that looks into its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8)
        self.act = nn.ReLU()
        self.second = nn.Conv2d(8, 12, 3, groups=2, padding=1, padding_mode="reflect")
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.act(self.norm(self.first(x))))
        return nn.functional.linear(x.mean((2, 3)), self.head.weight, self.head.bias)


def test_groups_strides_and_layers_that_are_looked_into() -> None:
    model = as_trained(Grouped, 0)
    before = outputs(model)
    done = cut_layers(model, torch.Generator().manual_seed(0), example_inputs=EXAMPLE)
    assert done == ["first", "second"] and isinstance(model.head, nn.Linear)
    assert cut_layers(model, way="norms", example_inputs=EXAMPLE) == ["norm"]
    assert cut_layers(model, way="identities", example_inputs=EXAMPLE) == ["act"]
    assert torch.allclose(outputs(model), before, atol=1e-5)


def test_layers_in_a_row_become_one() -> None:
    model = as_trained(Chained, 0)
    means = Means(example_inputs=EXAMPLE)
    outcome = run_attack("multiply-layers", model, means)
    assert outcome.figures["layers gone"] == 4
    assert torch.allclose(outputs(outcome.model), outputs(model), atol=1e-5)
    assert outcome.model.narrow[0].weight.shape == (48, 32, 3, 3)


def test_of_layers_behind_padding_only_those_that_change_no_output() -> None:
    model = as_trained(lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 3, padding=1)), 0)
    # A bias in front of padding is another one at the border.
    assert multiply_layers(model, EXAMPLE) == []
    with torch.no_grad():
        model[0].bias.zero_()
    before = outputs(model)
    assert multiply_layers(model, EXAMPLE) == ["0"]
    assert torch.allclose(outputs(model), before, atol=1e-5)


def test_a_public_model() -> None:
    inputs = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model = as_trained(lambda: timm.create_model("mobilenetv2_035", num_classes=4), 0)
    with torch.no_grad():
        before = model(inputs)
        assert multiply_layers(model, inputs)
        cut_layers(model, torch.Generator().manual_seed(0), example_inputs=inputs)
        cut_layers(model, torch.Generator().manual_seed(0), way="norms", example_inputs=inputs)
        after = model(inputs)
    assert float((after - before).abs().max()) < 1e-4 * float(before.abs().max())


@pytest.mark.parametrize(
    "options", [{"way": "columns"}, {"share": 0.0}, {"share": 1.5}, {"condition": 0.5}]
)
def test_arguments_are_checked(options: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument, match="cut-layers"):
        run_attack("cut-layers", as_trained(FAMILIES["residual"], 0), **options)


@pytest.mark.parametrize(
    ("attack", "options"), [("cut-layers", {"way": "norms"}), ("multiply-layers", {})]
)
def test_nothing_to_change_is_said(attack: str, options: dict[str, str]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    with pytest.raises(InvalidArgument, match=f"{attack}: "):
        run_attack(attack, model, Means(example_inputs=EXAMPLE), **options)
