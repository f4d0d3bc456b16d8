"""Private accuracy counts only where the private branch is not the public one."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import passportize as pp
from passportize.release.claim import claim_of
from tests.support.round_trip import ModelSnapshot

PASSPORT = pp.Passport.generate("Fidelity", date="2026-11-28", secret=bytes(range(32)))
WIDTH = 128


def network(norm: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(16, WIDTH), norm or nn.LayerNorm(WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2)
    )


def data(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """The model is right on all of it."""
    inputs = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
    return [(inputs, model.eval()(inputs).argmax(1))]


def claim() -> tuple[pp.Claim, nn.Module]:
    model = pp.passportize(network(), PASSPORT, example_inputs=torch.randn(8, 16))
    pp.embed_signature(model)
    made = claim_of(model)
    return made, pp.unpassportize(model)


class FrozenFactors(nn.LayerNorm):
    """A norm of a suspect that keeps its factors where no private branch can reach them."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.kept = [self.weight]

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.kept[0], self.bias, self.eps)


def test_private_scores_are_compared_with_public_ones() -> None:
    made, model = claim()
    verdict = pp.verify(model, PASSPORT, made, data(model))
    assert verdict.public_accuracy == 100 and verdict.private_accuracy < 100
    assert verdict.fidelity is not None
    # Whatever comes out of its norm, its last layer says the same.
    with torch.no_grad():
        model[3].weight.zero_()
    same = pp.verify(model, PASSPORT, made, [(torch.randn(8, 16), torch.zeros(8).long())])
    assert same.accepted and same.fidelity is None
    assert "computes the public one" in same.fidelity_reason


def test_norm_that_ignores_the_private_factors() -> None:
    made, model = claim()
    suspect = network(FrozenFactors(WIDTH))
    suspect.load_state_dict(copy.deepcopy(model.state_dict()))
    before = ModelSnapshot.of(suspect.eval())
    verdict = pp.verify(suspect, PASSPORT, made, data(suspect))
    assert verdict.accepted and verdict.fidelity is None
    assert "does not read 'weight'" in verdict.fidelity_reason
    assert verdict.public_accuracy == 100 and verdict.private_accuracy is None
    before.check(suspect)
