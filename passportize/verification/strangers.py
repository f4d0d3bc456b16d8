"""What keys that know nothing of a model find in it: the measured null hypothesis."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from passportize.errors import ClaimMismatch, InvalidArgument
from passportize.passport.passport import Passport
from passportize.release.claim import Claim
from passportize.signature.matching import match_names
from passportize.signature.model_key import ModelKey
from passportize.signature.null_model import log2_binomial_tail
from passportize.signature.reading import Reading, prepare_sites, read_signature
from passportize.verification.expectation import Expectation
from passportize.verification.fidelity import measure_fidelity

__all__ = [
    "draw_strangers",
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
    found: Mapping[str, str] | None = None,
) -> Iterable[Reading]:
    """Read the bits of several passports at the sites of one claim.

    Whoever a passport belongs to, it is read exactly as the owner's would be: here a stranger may
    use the owner's claim, which :func:`passportize.verify` refuses.

    Args:
        tensors: Weights of the suspect, by name.
        claim: Where bits lie.
        passports: The keys.
        found: The suspect's name for the weights of the claim's layout; by name if None.
    """
    layout = claim.layout
    prepared = prepare_sites(layout, tensors, found or match_names(layout, tensors))
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
    on_key: Callable[[int], None] | None = None,
) -> list[float]:
    """Private accuracy of a model under strangers' keys, in percent; the model is left as it was.

    Args:
        model: A plain model with all sites of the claim.
        claim: The owner's: strangers are given its bottleneck, if it has one.
        strangers: The keys.
        batches: Pairs of inputs and targets to measure on; private statistics are measured on them
            for each key anew, as for the owner.
        on_key: Called after every key with how many are done.

    Raises:
        ClaimMismatch: The model does not have all sites of the claim.
        InvalidArgument: The claim's formulation has no private branch.
    """
    if not claim.config.has_private_pass:
        raise InvalidArgument("the 'signature' preset has no private branch to measure")
    found = match_names(claim.layout, model.state_dict())
    private = Expectation.from_claim(claim).place(model, found)
    if isinstance(private, str):
        raise ClaimMismatch(f"the claim does not fit the model: {private}")
    accuracies = []
    for stranger in strangers:
        measured = measure_fidelity(model, stranger, private, batches)
        if measured.private is None:
            raise ClaimMismatch(f"the private branch could not be run: {measured.reason}")
        accuracies.append(measured.private)
        if on_key is not None:
            on_key(len(accuracies))
    return accuracies
