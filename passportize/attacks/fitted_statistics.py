"""Private running statistics fitted to a key of one's own: for claims that bring them.

On unchanged weights, with a stranger's key, means and variances of the private branch are fitted by
gradient to labelled data. Where a judge took them from the claim, the stranger's branch would work.
The schemes of this library measure them anew, so nothing comes of it; the figures say what would.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from passportize.attacks.attack import Attacked, Forged, Means, register_attack
from passportize.attacks.descent import Batch, example_of, labelled, portion
from passportize.attacks.private_training import train_factors
from passportize.errors import InvalidArgument
from passportize.layers.private_branch import has_statistics
from passportize.schemes.brought import Factors, private_call
from passportize.utils.trees import moved_inputs, place_of

__all__ = ["BroughtStatistics", "brought_accuracy"]


class BroughtStatistics(nn.Module):
    """Running means and variances of a private branch as parameters.

    They act through the factors, beside the model's own statistics, which stay: ``g (x - m) / s +
    b`` is ``g' (x - m0) / s0 + b'`` with ``g' = g s0 / s`` and ``b' = b + g (m0 - m) / s``.

    Args:
        model: A plain model; it is only read.
        factors: Of the private branch, by name of the norm.

    Raises:
        InvalidArgument: No norm of the branch has running statistics.
    """

    def __init__(self, model: nn.Module, factors: Factors) -> None:
        super().__init__()
        self.fixed = {
            name: (scale.detach(), shift.detach()) for name, (scale, shift) in factors.items()
        }
        self.norms = [name for name in factors if has_statistics(model.get_submodule(name))]
        if not self.norms:
            raise InvalidArgument("fitted-statistics: the norms keep no running statistics")
        self.means, self.variances = nn.ParameterList(), nn.ParameterList()
        self.own: list[tuple[Tensor, Tensor]] = []
        for name in self.norms:
            norm: Any = model.get_submodule(name)
            mean, spread = norm.running_mean.detach(), norm.running_var.detach() + norm.eps
            self.own.append((mean.clone(), spread.sqrt()))
            self.means.append(nn.Parameter(mean.clone()))
            self.variances.append(nn.Parameter(spread.log()))

    def factors(self) -> Factors:
        """The factors that have the effect of the brought statistics."""
        found = dict(self.fixed)
        for name, own, mean, variance in zip(
            self.norms, self.own, self.means, self.variances, strict=True
        ):
            scale, shift = self.fixed[name]
            deviation = (0.5 * variance).exp()
            found[name] = (scale * own[1] / deviation, shift + scale * (own[0] - mean) / deviation)
        return found


@torch.no_grad()
def brought_accuracy(model: nn.Module, factors: Factors, batches: list[Batch]) -> float:
    """Top-1 accuracy in percent of a private branch beside the model's own statistics."""
    hits = count = 0
    for inputs, targets in batches:
        moved = moved_inputs(inputs, place_of(model))
        scores = private_call(model.eval(), moved, factors)
        hits += int((scores.argmax(1).cpu() == targets.cpu()).sum())
        count += len(targets)
    return 100.0 * hits / max(count, 1)


@register_attack(
    "fitted-statistics",
    kind="forgery",
    needs=("data", "scheme", "passport"),
    source="this library",
    expected="forges where claims bring statistics; here whoever judges measures them",
)
def _attack(model: nn.Module, means: Means, *, share: float = 1.0) -> Attacked:
    """Means and variances of a stranger's branch fitted to data."""
    assert means.scheme is not None and means.passport is not None
    batches = portion(labelled(means, "fitted-statistics"), share, means.seed, "fitted-statistics")
    example = example_of(model, means)
    factors = means.scheme.private_factors(model, means.passport, example)
    if factors is None:
        raise InvalidArgument(
            f"fitted-statistics: {means.scheme.name} has no private branch whose statistics could "
            "be fitted"
        )
    statistics = BroughtStatistics(model, factors)
    samples = train_factors(
        model,
        lambda _: statistics.factors(),
        statistics.parameters(),
        batches,
        means,
        own_statistics=True,
    )
    accuracy = brought_accuracy(model, statistics.factors(), batches)
    claim = means.scheme.brought(model, means.passport, None, example)
    shown = (
        means.scheme.forge(model, means.passport, None, example)
        if claim is None
        else (claim.kept())
    )
    figures = {"accuracy with brought statistics": accuracy}
    return Attacked(None, Forged(means.passport, shown), means.steps, samples, figures)
