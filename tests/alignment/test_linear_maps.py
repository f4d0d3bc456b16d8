"""Products of linear steps compute what the steps do, and layers made of them too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from passportize.alignment.linear_maps import (
    LinearMap,
    as_convolution,
    layer_of,
    map_of,
    product,
    stepping,
)
from passportize.alignment.stretch_values import own_values, values_of
from passportize.alignment.stretches import Stretch, cut_in_stretches, step_of


def normed(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.uniform_(0.5, 1.5)
    return norm.eval()


CASES = {
    "pointwise, kernel": lambda: [nn.Conv2d(4, 6, 1), nn.Conv2d(6, 8, 3)],
    "kernel, norm, pointwise": lambda: [nn.Conv2d(4, 6, 3), normed(6), nn.Conv2d(6, 2, 1)],
    "norm, kernel in groups": lambda: [normed(4), nn.Conv2d(4, 6, 3, groups=2)],
    "groups, groups": lambda: [nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 6, 1, groups=2)],
    "groups, whole": lambda: [nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 6, 1)],
    "separable": lambda: [nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 6, 1)],
    "pointwise, each alone": lambda: [nn.Conv2d(4, 6, 1), nn.Conv2d(6, 6, 3, groups=6)],
    "linear": lambda: [nn.Linear(4, 6), nn.Linear(6, 3)],
}


def steps_of(case: str) -> list[nn.Module]:
    torch.manual_seed(0)
    return [module.eval() for module in CASES[case]()]


def inputs_of(case: str) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 4, *(() if case == "linear" else (7, 7)), generator=generator)


@pytest.mark.parametrize("case", CASES)
def test_a_product_computes_what_the_steps_do(case: str) -> None:
    modules = steps_of(case)
    whole = product([map_of(module) for module in modules])
    assert whole is not None
    layers = [module for module in modules if not isinstance(module, nn.BatchNorm2d)]
    one = layer_of(layers[stepping(layers)], whole)
    x = inputs_of(case)
    with torch.no_grad():
        assert torch.allclose(nn.Sequential(*modules)(x), one(x), atol=1e-5)


def test_two_kernels_are_no_product() -> None:
    assert product([map_of(nn.Conv2d(2, 2, 3)), map_of(nn.Conv2d(2, 2, 3))]) is None
    assert product([map_of(nn.Linear(2, 3)), map_of(nn.Linear(4, 2))]) is None


def test_a_norm_as_a_convolution() -> None:
    norm, x = normed(4), torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        assert torch.allclose(norm(x), as_convolution(norm)(x), atol=1e-6)


def test_groups_are_found_again_and_refused_where_channels_meet() -> None:
    step = map_of(nn.Conv2d(4, 6, 3, groups=2))
    whole = LinearMap(step.dense(), 1, step.shift)
    found = whole.in_groups(2)
    assert found is not None and torch.equal(found.weight, step.weight)
    assert map_of(nn.Conv2d(4, 6, 3)).in_groups(2) is None
    assert whole.in_groups(3) is None and whole.in_groups(4) is None


@pytest.mark.parametrize(
    ("names", "layers"),
    [
        (("inner", "outer"), [nn.Conv2d(32, 8, 3), nn.Conv2d(8, 40, 1)]),
        (("inner", "outer"), [nn.Conv2d(32, 8, 1), nn.Conv2d(8, 40, 3)]),
        (("deep", "point"), [nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 24, 1)]),
        (("point", "deep"), [nn.Conv2d(16, 24, 1), nn.Conv2d(24, 24, 3, groups=24)]),
        (("low", "head"), [nn.Linear(48, 4), nn.Linear(4, 24)]),
    ],
)
def test_two_layers_from_their_product(names: tuple[str, str], layers: list[nn.Module]) -> None:
    steps = tuple(step_of(name, layer) for name, layer in zip(names, layers, strict=True))
    whole = product([map_of(layer) for layer in layers])
    assert whole is not None
    stretch = Stretch((steps[0],), steps)
    found = values_of(stretch, whole)
    assert found is not None and set(found) == set(names)
    again = product([found[name] for name in names])
    assert again is not None and torch.allclose(again.weight, whole.weight, atol=1e-8)
    assert torch.allclose(again.shift, whole.shift, atol=1e-8)
    own = own_values(stretch, dict(zip(names, layers, strict=True)))
    together = product([own[name] for name in names])
    assert together is not None and torch.allclose(together.shift, whole.shift, atol=1e-8)


def test_square_layers_do_not_follow_from_their_product() -> None:
    layers = [nn.Linear(8, 8), nn.Linear(8, 8)]
    steps = tuple(step_of(str(number), layer) for number, layer in enumerate(layers))
    whole = product([map_of(layer) for layer in layers])
    assert whole is not None and values_of(Stretch((steps[0],), steps), whole) == {}


def sizes(*layers: nn.Module) -> list[object]:
    return [step_of(str(number), layer) for number, layer in enumerate(layers)]


def counted(suspect: list[object], released: list[object], any_width: bool = False) -> object:
    found = cut_in_stretches(suspect, released, any_width)  # type: ignore[arg-type]
    return None if found is None else [(len(s.suspect), len(s.released)) for s in found[1]]


def test_chains_are_cut_where_their_sizes_agree() -> None:
    first, second, norm = nn.Conv2d(4, 8, 3), nn.Conv2d(8, 6, 1), nn.BatchNorm2d(8)
    released = sizes(first, norm, second)
    assert counted(sizes(first, norm, second), released) == [(1, 1), (1, 1), (1, 1)]
    cut = sizes(nn.Conv2d(4, 4, 1), first, norm, second, nn.Conv2d(6, 6, 1))
    assert counted(cut, released) == [(2, 1), (1, 1), (2, 1)]
    # A norm that is a layer now is read with the layer before it.
    scale = nn.Conv2d(8, 8, 1, groups=8)
    assert counted(sizes(first, scale, second), released) == [(2, 2), (1, 1)]
    assert counted(sizes(nn.Conv2d(4, 6, 3)), released) == [(1, 3)]
    assert counted(sizes(nn.Conv2d(4, 6, 5)), released) is None
    assert counted(sizes(nn.Conv2d(4, 5, 3)), released) is None
    assert counted(sizes(nn.Conv2d(4, 5, 3)), sizes(first), any_width=True) == [(1, 1)]
