"""Dummy neurons change no output and every shape; where they cannot be put in, that is said."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from passportize.attacks import Means, run_attack
from passportize.attacks.dummy_neurons import VARIANTS, add_dummy_neurons
from passportize.errors import InvalidArgument
from tests.support.bench import BenchNet, attacked
from tests.support.widths import EXAMPLE as PICTURES
from tests.support.widths import FAMILIES, as_trained

EXAMPLE = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def with_random_factors(model: nn.Module) -> nn.Module:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point() and tensor.dim() == 1:
                tensor.uniform_(0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_stay_and_shapes_do_not(variant: str) -> None:
    model = with_random_factors(BenchNet())
    outcome = run_attack("dummy-neurons", model, Means(example_inputs=EXAMPLE), variant=variant)
    with torch.no_grad():
        before, after = model(EXAMPLE), outcome.model(EXAMPLE)
    assert torch.allclose(before, after, atol=1e-5)
    assert outcome.figures["channels added"] >= 16
    state = outcome.model.state_dict()
    grown = {name for name, value in model.state_dict().items() if value.shape != state[name].shape}
    assert {"conv1.weight", "bn1.running_mean", "bn2.weight", "conv3.weight"} <= grown
    # It is a model like any other: it saves, loads and trains.
    assert isinstance(outcome.model.conv1.weight, nn.Parameter)
    assert outcome.model.conv1.out_channels == outcome.model.bn1.num_features
    outcome.model.train()(EXAMPLE).sum().backward()
    assert outcome.model.conv2.weight.grad is not None


class Residual(nn.Module):
    """Two convolutions add up, and one of them has groups."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.last(self.deep(x + self.second(x)))


class Counted(nn.Module):
    """The forward pass counts on a number of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.last(x.reshape(len(x), 8, 6, 6))


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(8, 12), nn.LayerNorm(12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)))


@pytest.mark.parametrize("kind", [Residual, Counted, Normed])
def test_other_chains_are_left_alone_or_refused(kind: type[nn.Module]) -> None:
    model = with_random_factors(kind())
    for variant in VARIANTS:
        try:
            outcome = run_attack(
                "dummy-neurons", model, Means(example_inputs=EXAMPLE), variant=variant
            )
        except InvalidArgument as error:
            assert "dummy-neurons" in str(error) and kind is not BenchNet
            continue
        with torch.no_grad():
            assert torch.allclose(model(EXAMPLE), outcome.model(EXAMPLE), atol=1e-5)


@pytest.mark.parametrize("options", [{"variant": "other"}, {"share": 0.0}])
def test_wrong_options(options: dict) -> None:
    with pytest.raises(InvalidArgument, match="dummy-neurons"):
        run_attack("dummy-neurons", BenchNet(), Means(example_inputs=EXAMPLE), **options)


@pytest.mark.parametrize("variant", VARIANTS)
def test_dummy_neurons_are_taken_out_again(variant: str) -> None:
    rating = attacked("dummy-neurons", "keyed", variant=variant)
    assert rating.after == pytest.approx(rating.before, abs=0.3)
    assert rating.owner.accepted is True and not rating.succeeded
    assert rating.owner.matched > 0.95 * rating.owner.total


def test_dummy_neurons_hide_a_mark_that_wants_the_released_shapes() -> None:
    rating = attacked("dummy-neurons", "uchida")
    assert rating.after == pytest.approx(rating.before, abs=0.3)
    assert rating.owner.accepted is not True and rating.succeeded


@pytest.mark.parametrize("family", ["dense", "inverted"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_concatenations_depthwise_layers_and_gates_grow_as_well(family: str, variant: str) -> None:
    model = as_trained(FAMILIES[family], 0)
    grown = copy.deepcopy(model)
    assert add_dummy_neurons(grown, variant, 0.25, example_inputs=PICTURES)
    with torch.no_grad():
        before, after = model(PICTURES), grown(PICTURES)
    assert torch.allclose(before, after, atol=1e-4)
    if family == "dense":
        assert len(grown.grow[0].weight) == 15 + (variant == "clique")
        assert len(grown.norm.weight) == grown.head.in_features >= 75
    else:
        deep = grown.deep[0]
        assert deep.groups == deep.in_channels == len(deep.weight) == 80
        assert grown.gate.out_channels == 80
