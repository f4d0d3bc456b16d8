"""One training for all schemes: they differ in their loss and in nothing else."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.bench.budgets import Budget
from passportize.data.parts import Part, Parts
from passportize.demo.recipe import accuracy, shifted
from passportize.layers.model import is_passportized, switch_of
from passportize.schemes.scheme import Protection

__all__ = ["Plain", "Training", "train"]

Loss = Callable[[Tensor, Tensor], Tensor]


class Plain(Protection):
    """No protection: what the others are compared with."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def loss(
        self, inputs: Tensor, targets: Tensor, criterion: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """The criterion alone."""
        return criterion(self.model(inputs), targets)

    def release(self) -> None:  # type: ignore[override]
        """There is nothing that an owner keeps."""
        self.model.eval()


@dataclass(frozen=True)
class Training:
    """What a training was.

    Attributes:
        epoch: Whose checkpoint was taken, from 1 on.
        validation: Mean accuracy of the branches on the validation part then, in percent.
        finite: Whether every loss was.
    """

    epoch: int
    validation: float
    finite: bool


def train(
    protection: Protection,
    parts: Parts,
    budget: Budget,
    seed: int,
    *,
    triggers: Part | None = None,
) -> Training:
    """Train what a scheme protects, and keep the epoch that is best on the validation part.

    SGD with momentum 0.9 and weight decay 5e-4 (Adam for clouds), the gradient cut to length 5; the
    rate rises for a fifth of the steps and falls along a cosine. Pictures are shifted by up to an
    eighth and, apart from digits, mirrored; clouds are shaken. Order and changes follow from the
    seed alone, so they are the same for all schemes.

    Args:
        protection: Of a plain model; trained in place.
        parts: What to train on.
        budget: How long.
        seed: Of order and changes.
        triggers: Inputs and labels of which two are put into every batch.
    """
    model = protection.model
    place = next(model.parameters()).device
    images, labels = parts.train
    steps = max(1, len(labels) // budget.batch)
    descent = _optimizer(protection, budget, clouds=images.dim() == 3)
    schedule = torch.optim.lr_scheduler.LambdaLR(descent, _cycle(budget.epochs * steps))
    generator = torch.Generator().manual_seed(seed)
    best, kept = Training(0, -1.0, True), None
    finite = True
    for epoch in range(1, budget.epochs + 1):
        model.train()
        order = torch.randperm(len(labels), generator=generator)
        for chosen in order.split(budget.batch)[:steps]:
            x, y = _changed(images[chosen], parts.name, generator), labels[chosen]
            if triggers is not None:
                two = torch.randint(len(triggers[1]), (2,), generator=generator)
                x, y = torch.cat([x, triggers[0][two]]), torch.cat([y, triggers[1][two]])
            loss = protection.loss(x.to(place), y.to(place), functional.cross_entropy)
            descent.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(protection.parameters(), 5.0)
            descent.step()
            schedule.step()
            finite = finite and math.isfinite(float(loss.detach()))
        reached = _validation(model, parts)
        if reached > best.validation:
            best = Training(epoch, reached, finite)
            kept = copy.deepcopy((model.state_dict(), [p.data for p in protection.parameters()]))
    if kept is not None:
        model.load_state_dict(kept[0])
        for parameter, value in zip(protection.parameters(), kept[1], strict=True):
            parameter.data.copy_(value)
    model.eval()
    return Training(best.epoch, best.validation, finite)


def _cycle(steps: int) -> Callable[[int], float]:
    """Share of the highest rate at each step."""
    rising = max(1, steps // 5)

    def share(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))

    return share


def _optimizer(protection: Protection, budget: Budget, clouds: bool) -> torch.optim.Optimizer:
    if clouds:
        return torch.optim.Adam(protection.parameters(), lr=2e-3, weight_decay=1e-4)
    return torch.optim.SGD(
        protection.parameters(), lr=budget.learning_rate, momentum=0.9, weight_decay=5e-4
    )


def _validation(model: nn.Module, parts: Parts) -> float:
    """Mean accuracy of all branches."""
    if is_passportized(model) and switch_of(model).config.has_private_pass:
        found = [accuracy(model, *parts.validation, branch=which) for which in _BRANCHES]
        return sum(found) / len(found)
    return accuracy(model, *parts.validation)


_BRANCHES = ("public", "private")


def _changed(inputs: Tensor, name: str, generator: torch.Generator) -> Tensor:
    """Inputs as an epoch sees them."""
    if inputs.dim() == 3:
        return inputs + 0.01 * torch.randn(inputs.shape, generator=generator)
    moved = shifted(inputs, generator)
    if name.startswith("digits"):
        return moved
    mirrored = torch.rand(len(moved), generator=generator) < 0.5
    return torch.where(mirrored[:, None, None, None], moved.flip(3), moved)
