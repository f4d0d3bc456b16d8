"""Weights that are computed from others: bits lie in what the layer multiplies with."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import (
    parametrizations,
    parametrize,
    prune,
    remove_spectral_norm,
    remove_weight_norm,
    spectral_norm,
    weight_norm,
)

import passportize as pp
from passportize.errors import BranchLost, EmbeddingFailed
from passportize.layers.computed import effective_weight, is_computed, is_in_files, sources_of
from passportize.release.claim import claim_of
from tests.support.round_trip import assert_round_trip, assert_same_bits

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")

PASSPORT = pp.Passport.generate("Computed", date="2026-11-28", secret=bytes(range(32)))
WIDTH = 64


class LowRank(nn.Module):
    """An adapter as a parametrization, zero at first."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.full((2, weight.shape[1]), 0.1))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], 2))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


class Counted(nn.Module):
    """Changes a buffer whenever the weight is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("asked", torch.zeros(()))

    def forward(self, weight: Tensor) -> Tensor:
        self.asked += 1
        return weight * 1


def _parametrized(part: Callable[[nn.Linear], nn.Module]) -> Callable[[nn.Linear], object]:
    return lambda layer: parametrize.register_parametrization(layer, "weight", part(layer))


def _unparametrized(layer: nn.Linear) -> None:
    parametrize.remove_parametrizations(layer, "weight")


def _masked(layer: nn.Linear) -> None:
    prune.l1_unstructured(layer, "weight", 0.3)
    prune.random_unstructured(layer, "weight", 0.1)


def _unmasked(layer: nn.Linear) -> None:
    prune.remove(layer, "weight")


Change = Callable[[nn.Linear], object]
IN_FILES: dict[str, tuple[Change, Change]] = {
    "weight norm": (parametrizations.weight_norm, _unparametrized),
    "spectral norm": (parametrizations.spectral_norm, _unparametrized),
    "old weight norm": (weight_norm, remove_weight_norm),
    "old spectral norm": (spectral_norm, remove_spectral_norm),
    "pruned": (_masked, _unmasked),
}
NOT_IN_FILES: dict[str, Change] = {
    "orthogonal": parametrizations.orthogonal,
    "low rank": _parametrized(lambda layer: LowRank(layer.weight)),
    "two": lambda layer: (
        parametrizations.weight_norm(layer),
        _parametrized(lambda _: nn.Softsign())(layer),
    ),
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, WIDTH), nn.LayerNorm(WIDTH), nn.GELU(), nn.Linear(WIDTH, 16))


def inputs() -> Tensor:
    return torch.randn(16, 32, generator=torch.Generator().manual_seed(1))


def step(model: nn.Module) -> pp.JointLoss:
    loss = pp.joint_loss(model.train(), inputs(), torch.arange(16) % 5, F.cross_entropy)
    loss.total.backward()
    with torch.no_grad():
        model(inputs())  # or torch copies neither masked nor normed weights
    return loss


def protected(change: Change, before: bool) -> nn.Sequential:
    model = network()
    if before:
        change(model[0])
    pp.passportize(model, PASSPORT, example_inputs=inputs(), anchors={"1": "0.weight"})
    if not before:
        change(model[0])
    return model


WHEN = pytest.mark.parametrize("before", [True, False], ids=["before", "after"])


@WHEN
@pytest.mark.parametrize("name", IN_FILES)
def test_bits_are_in_what_the_layer_uses_as_claimed_and_once_it_is_plain(
    name: str, before: bool, tmp_path: Path
) -> None:
    change, undo = IN_FILES[name]
    model = protected(change, before)
    layer = model[0]
    assert is_computed(layer, "weight") and is_in_files(layer, "weight")
    embedding = pp.embed_signature(model)
    assert embedding.after == embedding.bits == WIDTH
    loss = step(model)
    assert all(source.grad is not None for source in sources_of(layer, "weight"))
    assert loss.sign.item() < 1e-3
    used = effective_weight(layer, "weight")
    model.eval()
    direct = F.linear(inputs(), used / _factor(layer, used), layer.bias)
    torch.testing.assert_close(layer(inputs()), direct)
    claim = pp.save_claim(model, tmp_path / "claim")
    assert claim.marking.layout.weights == {"0.weight": (WIDTH, 32)}
    pp.unpassportize(model)
    for suspect in (model, model.state_dict()):
        assert pp.verify(suspect, PASSPORT, claim).matched == WIDTH
    undo(layer)
    for suspect in (model, model.state_dict()):
        assert pp.verify(suspect, PASSPORT, claim).matched == WIDTH


def _factor(layer: nn.Linear, used: Tensor) -> Tensor:
    """By which a spectral norm divides all of a weight; 1 for what divides by nothing."""
    return used.norm() / layer.weight.norm()


@WHEN
@pytest.mark.parametrize("name", NOT_IN_FILES)
def test_what_no_file_tells_is_taken_off_before_the_claim(name: str, before: bool) -> None:
    model = protected(NOT_IN_FILES[name], before)
    step(model)
    with pytest.raises(BranchLost, match="take that off first"):
        claim_of(model)
    accuracy = pp.signature_accuracy(model)
    _unparametrized(model[0])
    assert pp.signature_accuracy(model) == accuracy
    claim = claim_of(model)
    assert pp.verify(_plain(model), PASSPORT, claim).matched == round(accuracy * WIDTH)


def _plain(model: nn.Module) -> nn.Module:
    twin = copy.deepcopy(model)
    twin[1].passport.switch.trained = False
    return pp.unpassportize(twin)


def test_live_suspect_is_read_as_it_computes() -> None:
    model = protected(lambda layer: None, False)
    pp.embed_signature(model)
    claim = claim_of(model)
    suspect = _plain(model)
    # Keeps minus the weight, and an offset that hides it.
    with torch.no_grad():
        suspect[0].weight.sub_(7.0)
    _parametrized(lambda _: _Plus(7.0))(suspect[0])
    assert pp.verify(suspect, PASSPORT, claim).matched == WIDTH


class _Plus(nn.Module):
    def __init__(self, offset: float) -> None:
        super().__init__()
        self.offset = offset

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.offset


@pytest.mark.parametrize("name", ["weight norm", "spectral norm", "pruned"])
def test_round_trip(name: str) -> None:
    model = network()
    IN_FILES[name][0](model[0])
    with torch.no_grad():
        model(inputs())
    assert_round_trip(model, PASSPORT, inputs())
    twin = copy.deepcopy(model)
    assert_same_bits(model.eval()(inputs()), twin.eval()(inputs()), "copy")


@WHEN
def test_embedding_says_what_it_cannot_set(before: bool) -> None:
    model = protected(NOT_IN_FILES["low rank"], before)
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(EmbeddingFailed, match=r"0\.weight is computed"):
        pp.embed_signature(model)
    assert_same_bits(list(state.values()), list(model.state_dict().values()), "weights")


def test_parametrization_with_a_buffer_is_not_asked() -> None:
    """It would count twice."""
    model = network()
    _parametrized(lambda _: Counted())(model[0])
    (site,) = pp.plan(model, example_inputs=inputs()).sites
    assert site.anchor.parts[0].weight == "3.weight"
    later = protected(_parametrized(lambda _: Counted()), False)
    with pytest.raises(BranchLost, match="has buffers, which may"):
        step(later)
