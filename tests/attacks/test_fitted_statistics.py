"""Statistics that a claimant may bring can be fitted to a key; those that the judge measures not.

On unchanged weights, with a stranger's key, the private running means and variances are fitted by
gradient to labelled data. Where a claim brings them, as it once did, the stranger's branch works.
"""

from __future__ import annotations

import pytest
import torch

from passportize.attacks.fitted_statistics import BroughtStatistics
from passportize.errors import InvalidArgument
from passportize.schemes.brought import private_call
from tests.support.bench import EVE, attacked, batches, means, released


def test_statistics_that_are_brought_can_be_fitted_and_measured_ones_not() -> None:
    has = {"data": batches("train"), "steps": 80, "learning_rate": 0.1}
    rating = attacked("fitted-statistics", "keyed", has)
    assert rating.forged is not None and rating.forged.private_accuracy is not None
    brought = rating.figures["accuracy with brought statistics"]
    assert brought > rating.forged.private_accuracy + 15
    assert rating.forged.accepted is False
    with pytest.raises(InvalidArgument, match="signature has no private branch"):
        attacked("fitted-statistics", "signature", has)


def test_brought_statistics_act_as_if_they_were_the_norms_own() -> None:
    release = released("keyed")
    example = means(release).example_inputs
    factors = release.scheme.private_factors(release.model, EVE, example)
    assert factors is not None
    brought = BroughtStatistics(release.model, factors)
    generator = torch.Generator().manual_seed(0)
    replaced = {}
    with torch.no_grad():
        for name, mean, variance in zip(
            brought.norms, brought.means, brought.variances, strict=True
        ):
            mean.copy_(torch.randn(mean.shape, generator=generator))
            variance.copy_(torch.randn(variance.shape, generator=generator))
            eps = release.model.get_submodule(name).eps
            replaced[f"{name}.running_mean"] = mean.detach().clone()
            replaced[f"{name}.running_var"] = variance.detach().exp() - eps
        own = private_call(release.copy(), example, factors, replaced)
        found = private_call(release.copy(), example, brought.factors())
    assert torch.allclose(own, found, atol=1e-3 * float(own.abs().max()))


def test_a_claim_has_no_place_for_statistics() -> None:
    claim = released("keyed").claim
    assert not any(claim.of_site(place) for place in range(len(claim.sites)))
