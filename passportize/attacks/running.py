"""One attack run on a copy of a released model, what it cost, and what the scheme says of it."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from passportize.attacks.attack import Attack, Forged, Means, find_attack
from passportize.errors import InvalidArgument
from passportize.layers.model import is_passportized
from passportize.schemes.scheme import Finding, Release
from passportize.utils.frozen import frozen_random_state
from passportize.verification.fidelity import measure_fidelity

__all__ = ["BREAKING_LOSS", "Cost", "Outcome", "Rating", "rate", "run_attack"]

BREAKING_LOSS = 10.0
"""Points of accuracy that a removal may cost and still count as one: a thief wants the model."""


@dataclass(frozen=True)
class Cost:
    """What an attack took.

    Attributes:
        steps: Optimizer steps, or tries.
        samples: Samples, counted as often as they were used.
        seconds: Wall-clock time.
    """

    steps: int
    samples: int
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """What :func:`run_attack` gives.

    Attributes:
        attack: Name of the attack.
        kind: ``"removal"`` or ``"forgery"``.
        options: What it was run with, defaults included.
        model: The attacked model in evaluation mode; a copy as released if nothing was changed.
        forged: The forged claim, if the attack makes one.
        cost: What it took.
        figures: Numbers of the attack's own.
        notes: What else the reader should know.
    """

    attack: str
    kind: str
    options: Mapping[str, Any]
    model: nn.Module
    forged: Forged | None
    cost: Cost
    figures: Mapping[str, float]
    notes: Sequence[str]


def run_attack(
    attack: str | Attack, model: nn.Module, means: Means | None = None, **options: Any
) -> Outcome:
    """Run one attack on a copy of a released model; the model and random states stay as they are.

    Args:
        attack: Name of a registered attack, or one.
        model: A plain model.
        means: What the attacker has.
        **options: Of the attack, see :attr:`passportize.attacks.attack.Attack.options`.

    Raises:
        InvalidArgument: There is no such attack or option, the attacker lacks what it needs, or
            the model is not plain.
        PassportizeError: The attack cannot be done on this model; its message says why.
    """
    entry = find_attack(attack) if isinstance(attack, str) else attack
    means = _checked(entry, model, means or Means(), options)
    start = time.perf_counter()
    with frozen_random_state(cuda=True):
        suspect = copy.deepcopy(model).eval()
        done = entry.function(suspect, means, **options)
    seconds = time.perf_counter() - start
    changed = suspect if done is None or done.model is None else done.model
    return Outcome(
        attack=entry.name,
        kind=entry.kind,
        options={**entry.options, **options},
        model=changed.eval(),
        forged=None if done is None else done.forged,
        cost=Cost(*((0, 0) if done is None else (done.steps, done.samples)), seconds),
        figures={} if done is None else dict(done.figures),
        notes=() if done is None else tuple(done.notes),
    )


def _checked(entry: Attack, model: nn.Module, means: Means, options: Mapping[str, Any]) -> Means:
    if not isinstance(model, nn.Module) or is_passportized(model):
        raise InvalidArgument(
            f"{entry.name}: an attacker has the plain model as it was released, not "
            f"{type(model).__name__} with private branches; call unpassportize(model) first"
        )
    unknown = set(options) - set(entry.options)
    if unknown:
        raise InvalidArgument(
            f"{entry.name} has no option {', '.join(sorted(unknown))}; it has "
            f"{', '.join(entry.options) or 'none'}"
        )
    if not isinstance(means.steps, int) or means.steps < 0 or not means.learning_rate > 0:
        raise InvalidArgument(
            f"{entry.name}: steps={means.steps!r} must be a whole number of 0 or more, and "
            f"learning_rate={means.learning_rate!r} a number above 0"
        )
    # What can be read once only is kept, since attacks read their data again and again.
    data = list(means.data) if isinstance(means.data, Iterator) else means.data
    inputs = list(means.inputs) if isinstance(means.inputs, Iterator) else means.inputs
    means = replace(means, data=data, inputs=inputs if _given(inputs) else data)
    lacking = [need for need in entry.needs if not _given(getattr(means, need))]
    if lacking:
        raise InvalidArgument(f"{entry.name} needs {', '.join(f'{need}=' for need in lacking)}")
    return means


def _given(value: Any) -> bool:
    """Whether something was given; batches may come from a loader, whose length nobody knows."""
    if value is None:
        return False
    return bool(value) if isinstance(value, (tuple, list)) else True


@dataclass(frozen=True)
class Rating:
    """One attack on one release, in the words of the tables.

    Attributes:
        attack, kind, scheme: Names.
        options: Of the attack.
        before: Top-1 accuracy of the released model, in percent.
        after: The same of the attacked one.
        owner: What the owner's claim is worth in the attacked model.
        forged: What the forged claim is worth in the attacked model; None if none was made.
        cost: What the attack took.
        figures: Numbers of the attack's own.
        notes: What else the reader should know.
    """

    attack: str
    kind: str
    scheme: str
    options: Mapping[str, Any]
    before: float
    after: float
    owner: Finding
    forged: Finding | None
    cost: Cost
    figures: Mapping[str, float]
    notes: Sequence[str]

    @property
    def succeeded(self) -> bool:
        """Whether the scheme is broken.

        That is: the mark is gone from a model that still is worth something, or a claim of somebody
        else's is accepted.
        """
        if self.kind == "forgery":
            return self.forged is not None and self.forged.accepted is True
        return self.owner.accepted is not True and self.after >= self.before - BREAKING_LOSS


def rate(release: Release, outcome: Outcome, loader: Iterable[Any]) -> Rating:
    """What a scheme says of an attack on one of its models.

    Args:
        release: What was attacked.
        outcome: From :func:`run_attack` on ``release.model``.
        loader: Labelled test batches ``(inputs, class indices)``; read several times.

    Raises:
        InvalidArgument: The loader is empty, or yields something else.
    """
    if isinstance(loader, Iterator):
        loader = list(loader)

    def accuracy(model: nn.Module) -> float:
        found = measure_fidelity(model, release.passport, "not asked for", loader).public
        if found is None:
            raise InvalidArgument("rate: the loader is empty; give labelled test batches")
        return found

    forged = outcome.forged
    judged = None
    if forged is not None:
        judged = release.scheme.verify(
            copy.deepcopy(outcome.model), forged.passport, forged.claim, loader
        )
    return Rating(
        attack=outcome.attack,
        kind=outcome.kind,
        scheme=release.scheme.name,
        options=outcome.options,
        before=accuracy(release.copy()),
        after=accuracy(copy.deepcopy(outcome.model)),
        owner=release.verify(copy.deepcopy(outcome.model), loader),
        forged=judged,
        cost=outcome.cost,
        figures=outcome.figures,
        notes=outcome.notes,
    )
