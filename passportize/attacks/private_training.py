"""Training what a claimant brings for a private branch, on a released model that stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from passportize.attacks.attack import Means
from passportize.attacks.descent import Batch, descend, scores_of
from passportize.schemes.brought import BroughtBranch, Factors, private_call

__all__ = ["own_signature", "train_factors"]


def train_factors(
    model: nn.Module,
    factors: Callable[[nn.Module], Factors],
    parameters: Iterable[nn.Parameter],
    batches: list[Batch],
    means: Means,
    *,
    penalty: Callable[[nn.Module], Tensor] | None = None,
    clip: float | None = None,
    own_statistics: bool = False,
) -> int:
    """Train the parameters of private factors on labelled data; the model is only read.

    Args:
        model: A plain model.
        factors: What the private branch multiplies and adds, of a model.
        parameters: What is trained.
        batches: Labelled batches.
        means: Steps, learning rate and seed.
        penalty: What is added to the loss, of a model.
        clip: Largest norm of the gradient.
        own_statistics: Let norms use the running statistics of the model, and not those of the
            batch, which whoever trains a branch has.

    Returns:
        Samples used.
    """
    frozen = copy.deepcopy(model).requires_grad_(False).eval()
    if not own_statistics:
        for name in factors(frozen):
            norm: Any = frozen.get_submodule(name)
            norm.train()

    def loss(inputs: Any, targets: Tensor) -> Tensor:
        output = private_call(frozen, inputs, factors(frozen))
        value = functional.cross_entropy(scores_of(output, "the private branch"), targets)
        return value if penalty is None else value + penalty(frozen)

    return descend(parameters, loss, batches, means, clip=clip)


@torch.no_grad()
def own_signature(branch: BroughtBranch, model: nn.Module) -> BroughtBranch:
    """The branch as it is shown, with the signs of its responses for a signature."""
    shown = branch.kept()
    gamma = [shown.responses(model, index).gamma for index in range(len(shown.sites))]
    shown.bits.copy_(torch.where(torch.cat(gamma) < 0, -1.0, 1.0))
    return shown
