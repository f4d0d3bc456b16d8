"""Statistics that a claimant may bring can be fitted to a key; those that the judge measures not.

On unchanged weights, with a stranger's key, the private running means and variances are fitted by
gradient to labelled data. Where a claim brings them, as it once did, the stranger's branch works.
"""

from __future__ import annotations

import copy
import functools

import torch
from torch import Tensor, nn

import passportize as pp
from passportize.release.claim import claim_of
from tests.support.small_protected import PASSPORT, accuracy, images, loader, protected

STRANGER = pp.Passport.generate("Mallory", date="2026-01-31", secret=bytes(32))
STEPS = 120


class Fitted(nn.Module):
    """The private half of a norm whose statistics are whatever is brought."""

    def __init__(self, norm: pp.PassportLayer) -> None:
        super().__init__()
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None and norm.running_var is not None
        scale, shift, _ = norm.private_factors()
        assert scale is not None and shift is not None
        self.scale, self.shift, self.eps = scale.detach(), shift.detach(), norm.eps
        self.mean = nn.Parameter(norm.running_mean.detach().clone())
        self.log_variance = nn.Parameter(norm.running_var.detach().log())

    def forward(self, x: Tensor) -> Tensor:
        deviation = (self.log_variance.exp() + self.eps).sqrt()
        factor = self.scale / deviation
        return x * factor[:, None, None] + (self.shift - self.mean * factor)[:, None, None]


@functools.cache
def fitted(steps: int) -> tuple[nn.Module, pp.Claim]:
    """What a stranger's private branch becomes by brought statistics, and the stranger's claim."""
    model = pp.passportize(protected("keyed").copy(), STRANGER, config=pp.PassportConfig.keyed())
    model.eval()
    claim = claim_of(model)
    branch = copy.deepcopy(model).requires_grad_(False)
    for name, layer in list(branch.named_modules()):
        if isinstance(layer, pp.PassportLayer):
            setattr(branch, name, Fitted(layer))
    statistics = [parameter for parameter in branch.parameters() if parameter.requires_grad]
    x, y = images("train")
    optimizer = torch.optim.Adam(statistics, 0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch = torch.randint(0, len(x), (128,), generator=generator)
        loss = nn.functional.cross_entropy(branch(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return branch, claim


def reached(steps: int) -> float:
    branch = fitted(steps)[0]
    with torch.no_grad():
        return accuracy(branch(images("test")[0]))


def test_brought_statistics_make_a_strangers_branch_work() -> None:
    """The old way: the attack is one, far above the same branch with statistics left alone."""
    assert reached(0) < 35
    assert reached(STEPS) > 50


def test_measured_statistics_leave_nothing_to_fit() -> None:
    suspect, claim = protected("keyed").copy(), fitted(STEPS)[1]
    verdict = pp.verify(suspect, STRANGER, claim, loader())
    assert verdict.fidelity is False
    owner = pp.verify(suspect, PASSPORT, protected("keyed").claim, loader())
    assert verdict.private_accuracy is not None and owner.private_accuracy is not None
    assert verdict.private_accuracy < 35 < owner.private_accuracy - 25


def test_a_claim_has_no_place_for_statistics() -> None:
    assert not any(fitted(STEPS)[1].of_site(place) for place in range(len(fitted(STEPS)[1].sites)))
