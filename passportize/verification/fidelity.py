"""Fidelity: the accuracy of the private branch next to that of the public one."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from passportize.errors import BranchMisuse, InvalidArgument
from passportize.layers.layer import PassportLayer
from passportize.layers.model import branch
from passportize.passport.passport import Passport
from passportize.surgery.branches import branches_put_in
from passportize.thresholds import FIDELITY_GAP
from passportize.training.private_statistics import measure_private_statistics
from passportize.utils.frozen import frozen_model, frozen_random_state
from passportize.utils.trees import call_model, moved_inputs, place_of
from passportize.verification.expectation import Placement

__all__ = ["Fidelity", "measure_fidelity"]


@dataclass(frozen=True)
class Fidelity:
    """Result of :func:`measure_fidelity`.

    Attributes:
        public: Top-1 accuracy of the model as it is, in percent; None if not measured.
        private: Top-1 accuracy of the private branch, in percent; None if not measured.
        passed: Whether the private branch is no more than the threshold below; None if that could
            not be judged.
        reason: Why it could not, or what the numbers are.
        samples: How many samples were counted.
    """

    public: float | None
    private: float | None
    passed: bool | None
    reason: str
    samples: int = 0


def measure_fidelity(
    model: nn.Module,
    passport: Passport,
    private: Placement | str,
    loader: Iterable[Any],
    device: torch.device | str | None = None,
) -> Fidelity:
    """Run both branches of a plain model over some data; the model is left exactly as it was.

    Private running statistics start from nothing and are measured on the inputs of ``loader`` with
    the given key, by one pass without labels, so no claimant brings any.

    Args:
        model: A plain model.
        passport: Source of the private branch.
        private: What to put back, or the reason why that cannot be done.
        loader: Yields ``(inputs, targets)``: inputs a tensor ``[batch, ...]``, a tuple of
            positional or a dict of keyword arguments; targets ``[batch]`` class indices. A graph
            batch with a field ``y`` does as well. Read twice where norms keep statistics; one that
            can be read only once is kept in memory.
        device: Where to run a copy of the model; None to run it where it is.

    Raises:
        InvalidArgument: The loader yields something else.
    """
    if device is not None:
        model = copy.deepcopy(model).to(device)
    if isinstance(loader, Iterator):
        loader = list(loader)
    reason = private if isinstance(private, str) else ""
    with frozen_random_state(cuda=True), frozen_model(model, values=True), torch.no_grad():
        model.eval()
        if not isinstance(private, str):
            try:
                return _judge(_count_both(model, passport, private, loader), "")
            except BranchMisuse as error:
                reason = str(error)
        return _judge(_count(model, loader, ("public",)), reason)


def _count_both(
    model: nn.Module, passport: Passport, private: Placement, loader: Iterable[Any]
) -> _Counts:
    marking = private.marking
    with branches_put_in(
        model, marking.sites, passport, marking.config, marking.configs, private.layout
    ):
        for site, tensors in zip(marking.sites, private.tensors, strict=True):
            _fill(model.get_submodule(site.name), tensors)
        measure_private_statistics(model, (_pair(batch)[0] for batch in loader))
        return _count(model, loader, ("public", "private"))


def _fill(layer: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give the branch of one layer what the claim holds for it."""
    assert isinstance(layer, PassportLayer)
    parameters = dict(layer.passport.named_parameters())
    for name, tensor in tensors.items():
        parameters[name].copy_(tensor)


@dataclass
class _Counts:
    samples: int
    classes: int
    hits: dict[str, int]
    differ: bool = False
    """Whether the private branch ever gave other scores than the public one."""


def _count(model: nn.Module, loader: Iterable[Any], branches: Sequence[str]) -> _Counts:
    counts = _Counts(0, 0, dict.fromkeys(branches, 0))
    place = place_of(model)
    for batch in loader:
        inputs, targets = _pair(batch)
        inputs = moved_inputs(inputs, place)
        first = None
        for index, which in enumerate(branches):
            if len(branches) == 1:
                scores = _scores(call_model(model, inputs))
            else:
                with branch(model, which):
                    scores = _scores(call_model(model, inputs))
            best = scores.argmax(1).cpu()
            labels = torch.as_tensor(targets, device="cpu").reshape(-1)
            if best.reshape(-1).shape != labels.shape:
                raise InvalidArgument(
                    f"verify: the model gives {tuple(best.shape)} predictions and the loader "
                    f"{tuple(labels.shape)} targets; it must yield (inputs, class indices)"
                )
            counts.hits[which] += int((best.reshape(-1) == labels).sum())
            if index == 0:
                first = scores
                counts.samples += labels.numel()
                counts.classes = scores.shape[1]
            elif first is not None and not torch.equal(first, scores):
                counts.differ = True
    return counts


def _pair(batch: Any) -> tuple[Any, Any]:
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    targets = getattr(batch, "y", None)
    if isinstance(targets, Tensor):
        return batch, targets
    raise InvalidArgument(
        f"verify: the loader must yield (inputs, targets), not {type(batch).__name__}"
    )


def _scores(output: Any) -> Tensor:
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    output = getattr(output, "logits", output)
    if not isinstance(output, Tensor) or output.dim() < 2:
        raise InvalidArgument(
            "verify: fidelity needs a model that returns class scores [batch, classes]; leave "
            "loader= out to verify the signature alone"
        )
    return output


def _judge(counts: _Counts, reason: str) -> Fidelity:
    if not counts.samples:
        return Fidelity(None, None, None, "the loader is empty")
    public = 100.0 * counts.hits["public"] / counts.samples
    if "private" not in counts.hits:
        return Fidelity(public, None, None, reason, counts.samples)
    private = 100.0 * counts.hits["private"] / counts.samples
    if not counts.differ:
        reason = "the private branch computes the public one, so its accuracy shows nothing"
        return Fidelity(public, private, None, reason, counts.samples)
    if public < 200.0 / counts.classes:
        reason = "the suspect itself is near chance on these data, as it stands"
        return Fidelity(public, private, None, reason, counts.samples)
    gap = public - private
    side = f"{abs(gap):.1f} points {'below' if gap > 0 else 'above'}"
    if abs(gap) < 0.05:
        side = "level with"
    reason = f"the private branch is {side} the public one; {FIDELITY_GAP:g} below are allowed"
    return Fidelity(public, private, gap <= FIDELITY_GAP, reason, counts.samples)
