"""What keys that know nothing of a model find in it: the measured null hypothesis."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from passportize.errors import ClaimMismatch, InvalidArgument
from passportize.layers.model import branch, passport_layers
from passportize.layers.statistics import has_statistics, relative_statistics
from passportize.passport.passport import Passport
from passportize.release.claim import Claim
from passportize.signature.matching import match_tensors, structure_of
from passportize.signature.model_key import ModelKey
from passportize.signature.null_model import log2_binomial_tail
from passportize.signature.reading import Reading, prepare_sites, read_signature
from passportize.surgery.attach import attached
from passportize.verification.expectation import PrivateBranch, place_sites
from passportize.verification.fidelity import measure_fidelity

__all__ = [
    "draw_strangers",
    "fit_statistics",
    "read_claimed",
    "strangers_accuracies",
    "strangers_strengths",
]


def draw_strangers(count: int) -> list[Passport]:
    """Passports with fresh secrets, which know nothing of any model.

    Raises:
        InvalidArgument: A count below 1.
    """
    if count < 1:
        raise InvalidArgument(f"count={count!r} must be 1 or more")
    return [Passport.generate(f"Stranger {number + 1}") for number in range(count)]


def read_claimed(
    tensors: Mapping[str, Tensor],
    claim: Claim,
    passports: Iterable[Passport],
    *,
    names: bool = True,
) -> Iterable[Reading]:
    """Read the bits of several passports at the sites of one claim.

    Whoever a passport belongs to, it is read exactly as the owner's would be: here a stranger may
    use the owner's claim, which :func:`passportize.verify` refuses.

    Args:
        tensors: Weights of the suspect, by name.
        claim: Where bits lie.
        passports: The keys.
        names: Match tensors by name; otherwise by order and shape.
    """
    layout = claim.layout
    match = match_tensors(claim.structure, structure_of(tensors), names=names)
    prepared = prepare_sites(layout, tensors, match)
    for passport in passports:
        yield read_signature(ModelKey(passport, layout), layout, prepared)


def strangers_strengths(
    tensors: Mapping[str, Tensor],
    claim: Claim,
    strangers: Sequence[Passport],
    *,
    on_key: Callable[[int], None] | None = None,
) -> list[float]:
    """Strength in bits, ``-log2 p``, of every stranger's signature test.

    Args:
        tensors: Weights of the suspect, by name.
        claim: Where bits lie.
        strangers: The keys.
        on_key: Called after every key with how many are done.
    """
    strengths = []
    for reading in read_claimed(tensors, claim, strangers):
        strengths.append(-log2_binomial_tail(reading.matched, reading.total))
        if on_key is not None:
            on_key(len(strengths))
    return strengths


def strangers_accuracies(
    model: nn.Module,
    claim: Claim,
    strangers: Sequence[Passport],
    batches: Sequence[Any],
    *,
    fit_on: Sequence[Any] | None = None,
    on_key: Callable[[int], None] | None = None,
) -> list[float]:
    """Private accuracy of a model under strangers' keys, in percent; the model is left as it was.

    Args:
        model: A plain model with all sites of the claim.
        claim: The owner's: strangers are given its private statistics (and bottleneck).
        strangers: The keys.
        batches: Pairs of inputs and targets to measure on.
        fit_on: Pairs on which each stranger's own statistics are taken instead; no labels are
            used.
        on_key: Called after every key with how many are done.

    Raises:
        ClaimMismatch: The model does not have all sites of the claim.
        InvalidArgument: The claim's formulation has no private branch.
    """
    if not claim.config.has_private_pass:
        raise InvalidArgument("the 'signature' preset has no private branch to measure")
    private = _private_branch(model, claim)
    accuracies = []
    for stranger in strangers:
        own = private if fit_on is None else fit_statistics(model, stranger, private, fit_on)
        measured = measure_fidelity(model, stranger, own, batches)
        if measured.private is None:
            raise ClaimMismatch(f"the private branch could not be run: {measured.reason}")
        accuracies.append(measured.private)
        if on_key is not None:
            on_key(len(accuracies))
    return accuracies


def fit_statistics(
    model: nn.Module, passport: Passport, private: PrivateBranch, batches: Iterable[Any]
) -> PrivateBranch:
    """The private branch with running statistics that are taken with this key from some data.

    What a claimant can do for any model without the owner's secret; it costs no training.

    Args:
        model: A plain model; it is left as it was.
        passport: The claimant's key.
        private: Where the branches go.
        batches: Pairs of inputs and targets; the targets are not used.
    """
    twin = copy.deepcopy(model)
    fitted = []
    with attached(twin, private.sites, passport, private.config, private.configs, private.layout):
        layers = passport_layers(twin)
        twin.eval()
        for layer in layers.values():
            layer.train()
            if has_statistics(layer):
                # None: the plain mean over all batches.
                layer.momentum = None  # type: ignore[assignment]
                layer.passport.num_batches_tracked.zero_()  # type: ignore[union-attr]
        with torch.no_grad(), branch(twin, "private"):
            for inputs, _ in batches:
                twin(inputs)
        for site, tensors in zip(private.sites, private.tensors, strict=True):
            layer = layers[site.name]
            scale = getattr(layer, layer.scale_name, None)
            fitted.append({**tensors, **relative_statistics(layer, layer.passport, scale)})
    return PrivateBranch(
        private.sites, private.configs, private.config, private.layout, tuple(fitted)
    )


def _private_branch(model: nn.Module, claim: Claim) -> PrivateBranch:
    match = match_tensors(claim.structure, structure_of(model.state_dict()))
    placed = place_sites(claim.sites, claim.structure, match, model)
    if isinstance(placed, str):
        raise ClaimMismatch(f"the claim does not fit the model: {placed}")
    tensors = tuple(claim.of_site(index) for index in range(len(claim.sites)))
    return PrivateBranch(placed, claim.configs, claim.config, claim.layout, tensors)
