"""Blocks of rows: what is read of odd weights, and what comes back to them as gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import passportize as pp
from passportize.layers.gathered import Gathered
from passportize.layers.model import passport_layers
from passportize.layers.row_blocks import FREE_PADDING, PADDING, blocks_of
from tests.support.small_joint import PASSPORT


class Odd(nn.Module):
    """Weights that share rows, are computed, centred, transposed; rows less their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 16, 3)
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(3))
        self.up = nn.ConvTranspose2d(16, 12, 2, groups=2)
        self.up_norm = nn.BatchNorm2d(12)
        self.weighed = parametrizations.weight_norm(nn.Conv2d(12, 16, 3))
        self.weighed_norm = nn.GroupNorm(4, 16)
        self.pruned = prune.l1_unstructured(nn.Conv2d(16, 16, 1), "weight", 0.5)
        self.pruned_norm = nn.BatchNorm2d(16)
        self.stream = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        self.layer_norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(3))
        self.head = nn.Linear(16, 24)
        self.last = nn.LayerNorm(24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        for norm in self.norms:
            x = torch.relu(norm(x))
        x = torch.relu(self.up_norm(self.up(x)))
        x = torch.relu(self.weighed_norm(self.weighed(x)))
        x = torch.relu(self.pruned_norm(self.pruned(x))).mean((2, 3))
        for linear, norm in zip(self.stream, self.layer_norms, strict=True):
            x = norm(x + linear(x))
        return self.last(self.head(x))


def build() -> Odd:
    torch.manual_seed(0)
    model = Odd().double()
    return pp.passportize(model, PASSPORT, example_inputs=torch.randn(2, 4, 9, 9).double()).train()


def alone(model: nn.Module) -> Tensor:
    """The sign loss layer by layer."""
    penalties = [layer.private_factors()[2] for layer in passport_layers(model).values()]
    return torch.stack([penalty for penalty in penalties if penalty is not None]).sum()


def together(model: nn.Module) -> Tensor:
    branches = [layer.passport for layer in passport_layers(model).values()]
    return Gathered(branches, sign_due=True).penalty()


def test_the_cases_are_what_they_say() -> None:
    branches = [layer.passport for layer in passport_layers(build()).values()]
    blocks = blocks_of(branches)
    pieces = [piece for block in blocks for piece in block.pieces]
    assert {piece.part is None for piece in pieces} == {False, True}
    assert any(piece.levelled for piece in pieces) and not all(piece.levelled for piece in pieces)
    assert len({id(piece.source) for piece in pieces}) < len(pieces)
    assert any(piece.vectors.entries < block.width for block in blocks for piece in block.pieces)


def change_nothing(model: Odd) -> None:
    pass


def freeze(model: Odd) -> None:
    model.conv.weight.requires_grad_(False)
    model.stream[0].weight.requires_grad_(False)


def kill_rows(model: Odd) -> None:
    with torch.no_grad():
        model.conv.weight[3] = 0
        model.head.weight[:4] = 0


def coarsen(model: Odd) -> None:
    """Gauges and answers of exactly zero."""
    with torch.no_grad():
        for weight in (model.conv.weight, model.head.weight):
            weight.copy_((30 * weight).round().clamp(-1, 1))


@pytest.mark.parametrize("change", [change_nothing, freeze, kill_rows, coarsen])
def test_gradients_are_those_of_the_layers(change: Callable[[Odd], None]) -> None:
    model, other = build(), build()
    change(model)
    change(other)
    ours, theirs = together(model), alone(other)
    torch.testing.assert_close(ours, theirs)
    (3 * ours).backward()
    (3 * theirs).backward()
    found = 0
    for name, parameter in model.named_parameters():
        expected = other.get_parameter(name).grad
        assert (parameter.grad is None) == (expected is None), name
        if expected is not None:
            found += 1
            torch.testing.assert_close(parameter.grad, expected, msg=name)
    assert found > 6


def test_second_derivatives() -> None:
    model, other = build(), build()
    for candidate, penalty in ((model, together(model)), (other, alone(other))):
        weights = [candidate.conv.weight, candidate.head.weight]
        first = torch.autograd.grad(penalty, weights, create_graph=True)
        sum(gradient.square().sum() for gradient in first).backward()
    for name in ("conv", "head"):
        found, expected = (m.get_parameter(f"{name}.weight").grad for m in (model, other))
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_short_types_are_computed_in_float32(dtype: torch.dtype) -> None:
    model = build().to(dtype)
    exact = build().to(dtype).float()
    ours, theirs = together(model), together(exact)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    ours.backward()
    theirs.backward()
    found, expected = model.head.weight.grad, exact.head.weight.grad
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=1e-3)


def test_what_lies_outside_the_windows_gets_nothing_whatever_it_is() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(40, 16, 3), nn.BatchNorm2d(16))
    pp.passportize(model, PASSPORT, example_inputs=torch.randn(2, 40, 5, 5))
    (piece,) = [piece for block in blocks_of([model[1].passport]) for piece in block.pieces]
    outside = torch.ones(16, 360, dtype=torch.bool)
    outside[:, piece.vectors.window] = False
    with torch.no_grad():
        model[0].weight.view(16, -1)[outside] = torch.inf
    together(model).backward()
    gradient = model[0].weight.grad.view(16, -1)
    assert not gradient[outside].any() and gradient[~outside].ne(0).any()


def test_weights_that_were_changed_before_the_backward_pass_are_noticed() -> None:
    model = build()
    penalty = together(model)
    with torch.no_grad():
        model.conv.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        penalty.backward()


@pytest.mark.parametrize(("width", "blocks"), [(1, 1), (16, 2)])
def test_padding_is_bounded(width: int, blocks: int) -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in ((8, 32), (32, 200), (200, 300), (300, 16), (16, 64 * width)):
        layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs)]
    model = pp.passportize(nn.Sequential(*layers), PASSPORT, example_inputs=torch.randn(4, 8))
    found = blocks_of([layer.passport for layer in passport_layers(model).values()])
    read = sum(piece.rows.numel() for block in found for piece in block.pieces)
    filled = sum(block.fill()[0].numel() for block in found)
    assert 0 < filled - read <= max(FREE_PADDING, PADDING * read)
    assert len(found) == blocks
