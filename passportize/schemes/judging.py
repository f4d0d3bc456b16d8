"""The two tests of the published schemes on what a claimant brings: bits and accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from passportize.errors import InvalidArgument, PassportizeError
from passportize.schemes.brought import BroughtBranch, Factors, fresh_statistics, private_call
from passportize.schemes.scheme import Finding
from passportize.signature.null_model import log2_binomial_tail
from passportize.thresholds import ACCEPT_STRENGTH, FIDELITY_GAP
from passportize.utils.frozen import frozen_model, frozen_random_state
from passportize.utils.trees import call_model, moved_inputs, place_of

__all__ = ["Accuracies", "branch_accuracies", "judge_branch"]

Accuracies = tuple[float, float]
"""Top-1 accuracy of the public and of the private branch, in percent."""


def branch_accuracies(
    model: nn.Module, factors: Factors, loader: Iterable[Any], own_statistics: bool
) -> Accuracies:
    """Run both branches of a plain model over labelled data; the model is left as it was.

    Args:
        model: A plain classifier.
        factors: Of the private branch.
        loader: Yields ``(inputs, class indices)``; read twice.
        own_statistics: Whether the private branch has running statistics of its own: then they are
            measured on the inputs of ``loader``, starting from nothing.

    Raises:
        InvalidArgument: The loader is empty.
    """
    if isinstance(loader, Iterator):
        loader = list(loader)
    place = place_of(model)
    hits, count = [0, 0], 0
    with frozen_random_state(cuda=True), frozen_model(model, values=True), torch.no_grad():
        model.eval()
        statistics = None
        if own_statistics:
            statistics = _measured(model, factors, loader, place)
        for inputs, targets in loader:
            inputs = moved_inputs(inputs, place)
            labels = torch.as_tensor(targets).reshape(-1).to(place)
            outputs = (call_model(model, inputs), private_call(model, inputs, factors, statistics))
            for branch, scores in enumerate(outputs):
                hits[branch] += int((scores.argmax(1) == labels).sum())
            count += len(labels)
    if not count:
        raise InvalidArgument("the loader is empty; give labelled batches")
    return 100.0 * hits[0] / count, 100.0 * hits[1] / count


def _measured(
    model: nn.Module, factors: Factors, loader: Iterable[Any], place: torch.device
) -> dict[str, Tensor]:
    """Private running statistics as plain means over all batches."""
    statistics = fresh_statistics(model, list(factors))
    for name, buffer in statistics.items():
        buffer.fill_(1 if name.endswith("running_var") else 0)
    norms: list[Any] = [model.get_submodule(name) for name in factors]
    momenta = [getattr(norm, "momentum", None) for norm in norms]
    try:
        for norm in norms:
            norm.train()
            norm.momentum = None
        for inputs, targets in loader:
            # One sample has no variance of its own.
            if len(targets) > 1:
                private_call(model, moved_inputs(inputs, place), factors, statistics)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.eval()
            norm.momentum = momentum
    return statistics


def judge_branch(
    suspect: nn.Module,
    branch: BroughtBranch,
    loader: Iterable[Any] | None,
    own_statistics: bool,
) -> Finding:
    """Both tests: enough bits match, and the private branch is as accurate as the public one.

    Args:
        suspect: A plain model.
        branch: What the claimant brings.
        loader: Labelled batches; without them the bits decide alone.
        own_statistics: See :func:`branch_accuracies`.
    """
    matched, total = branch.matched(suspect)
    strength = max(0.0, -log2_binomial_tail(matched, total)) if total else 0.0
    accepted = strength >= ACCEPT_STRENGTH
    reason = f"{matched} of {total} bits match"
    public = private = None
    if loader is not None:
        try:
            factors = branch.factors(suspect)
            public, private = branch_accuracies(suspect, factors, loader, own_statistics)
        except (PassportizeError, RuntimeError, AttributeError) as error:
            accepted = False
            reason += f"; the private branch does not fit the suspect ({type(error).__name__})"
        else:
            accepted = accepted and public - private <= FIDELITY_GAP
            reason += f"; private accuracy {private:.1f} % beside {public:.1f} %"
    return Finding(accepted, matched, total, strength, public, private, reason)
