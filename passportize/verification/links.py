"""Proof through the released weights, for a suspect whose channels were disguised.

Two links, each with its own null hypothesis, never one number that mixes them:

1. key -> released weights: the signature test as always, exact. The claim names the digest of these
   weights, so they are as old as the claim's published digest.
2. released weights -> suspect: the suspect is aligned with them, and what the alignment did not
   look at is tested (:mod:`passportize.alignment.similarity`).

The bits of the aligned suspect are a necessary condition: without them the two are kin, and nothing
says which was first or that either is a copy. They have no exact p-value, since the alignment was
made by looking at weights that know the key, and prefers the channels that resemble them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from passportize.alignment.alignment import align
from passportize.alignment.similarity import Similarity, measure_similarity
from passportize.alignment.tied_channels import find_tied_channels
from passportize.errors import InvalidArgument, TracingError
from passportize.release.checkpoint import host_state_dict, load_weights
from passportize.release.claim import Claim
from passportize.release.weights_digest import weights_digest
from passportize.signature.evidence import Evidence, judge_evidence, read_evidence
from passportize.signature.model_key import ModelKey
from passportize.thresholds import ACCEPT_STRENGTH, LINK_LIKENESS, LINK_P_VALUE
from passportize.verification.counterparts import find_counterparts, structure_of
from passportize.verification.expectation import Expectation
from passportize.verification.suspect import Suspect, Weights

__all__ = ["Links", "judge_links", "open_released"]


@dataclass(frozen=True)
class Links:
    """What the released weights say about a suspect that does not read plainly.

    Attributes:
        accepted: Whether both links hold; None if one of them could not be judged.
        reason: Why, in words.
        released_matched: Signature bits of the released weights that match.
        released_total: Signature bits that were read from them.
        released_strength: Bits of evidence for the first link, exact.
        similarity: The second link; None if it could not be measured.
        moved: Channels of the suspect that had another place.
        channels: Channels that could have had one.
        aligned_matched: Bits of the aligned suspect that match: a copy must have them, too, but
            they have no exact p-value.
        aligned_total: Bits that were read from it.
    """

    accepted: bool | None
    reason: str
    released_matched: int
    released_total: int
    released_strength: float
    similarity: Similarity | None = None
    moved: int = 0
    channels: int = 0
    aligned_matched: int = 0
    aligned_total: int = 0

    def lines(self) -> list[str]:
        """The links as lines of a verdict."""
        lines = [
            f"link 1:    key -> released weights: {self.released_matched} of "
            f"{self.released_total} bits, strength {self.released_strength:.1f}, "
            f"{ACCEPT_STRENGTH:g} needed"
        ]
        found = self.similarity
        if found is not None:
            lines += [
                f"link 2:    released weights -> suspect: likeness {found.likeness:.3f} over "
                f"{found.rows} rows, {LINK_LIKENESS:g} needed; p = {found.p_value:.2g} against "
                f"{found.matchings} random matchings, {LINK_P_VALUE:g} needed",
                f"aligned:   {self.moved} of {self.channels} channels had another place; "
                f"{self.aligned_matched} of {self.aligned_total} bits match then "
                "(a copy must have them; no exact p-value)",
            ]
        return lines


def open_released(released: Weights, claim: Claim | None) -> dict[str, Tensor]:
    """The released weights, checked against the claim.

    Raises:
        InvalidArgument: They are not those that the claim names, or there is no claim.
        CheckpointError: The file cannot be read.
    """
    if claim is None:
        raise InvalidArgument(
            "verify: released= needs the claim, whose digest says which weights were released; "
            "weights that nothing binds to a date prove nothing"
        )
    if isinstance(released, (str, os.PathLike)):
        state: Any = load_weights(released)
    elif isinstance(released, (nn.Module, Mapping)):
        state = released
    else:
        raise InvalidArgument(
            "verify: released= must be a plain model, a state dict or the path of a file of "
            f"weights, not {type(released).__name__}"
        )
    tensors = {
        name: value.detach()
        for name, value in host_state_dict(state).items()
        if isinstance(value, Tensor)
    }
    if weights_digest(tensors) != claim.weights:
        raise InvalidArgument(
            "verify: released= is not what the claim was made for, its digest differs; give the "
            "very weights that were released, unchanged and in their type"
        )
    return tensors


def judge_links(
    released: Mapping[str, Tensor],
    opened: Suspect,
    key: ModelKey,
    claimed: Expectation,
    example_inputs: Any = None,
) -> Links:
    """Both links from a key to a suspect.

    Args:
        released: From :func:`open_released`.
        opened: The suspect, with a module.
        key: The claimant's key for the layout.
        claimed: What the claim expects.
        example_inputs: As in :func:`passportize.plan`.

    Raises:
        InvalidArgument: There is no model to follow channels in.
    """
    if opened.module is None:
        raise InvalidArgument(
            "verify: released= needs model=, a plain model of the suspect's architecture, to "
            "follow its channels"
        )
    evidence = read_evidence(released, key, claimed.layout)
    first, reason = judge_evidence(evidence, claimed.layout)
    if first is not True:
        return _links(first, f"link 1: in the released weights, {reason}", evidence)
    if not opened.whole:
        return _links(None, "link 2: the suspect lacks weights of model=", evidence)
    suspect = {name: value.detach().cpu() for name, value in opened.module.state_dict().items()}
    found = find_counterparts(structure_of(suspect), structure_of(released))
    if any(partner is None for partner in found.values()):
        return _links(
            None, "link 2: the suspect is no model of the released architecture", evidence
        )
    own = {name: released[partner].cpu() for name, partner in found.items() if partner}
    try:
        tied = find_tied_channels(opened.module, example_inputs)
    except TracingError as error:
        return _links(None, f"link 2: {error}", evidence)
    alignment = align(own, suspect, tied)
    similarity = measure_similarity(own, alignment.tensors, tied)
    aligned = read_evidence(alignment.tensors, key, claimed.layout)
    second, reason = _second_link(similarity, aligned)
    return replace(
        _links(second, reason, evidence),
        similarity=similarity,
        moved=alignment.moved,
        channels=alignment.channels,
        aligned_matched=aligned.reading.matched,
        aligned_total=aligned.reading.total,
    )


def _second_link(similarity: Similarity, aligned: Evidence) -> tuple[bool | None, str]:
    """Whether the suspect is a copy, and why.

    Likeness alone does not say so: two honest fine-tunings of one public base are alike as well,
    and only a copy has the owner's bits.
    """
    if similarity.accepted is None:
        return None, "link 2: no rows of this model are long enough to be compared"
    if not similarity.accepted:
        return False, "link 2: the suspect's weights are not those that were released"
    if aligned.strength < ACCEPT_STRENGTH:
        reading = aligned.reading
        return False, (
            "link 2: kin, direction unknown: the weights are alike, but the suspect, aligned, does "
            f"not carry the signature ({reading.matched} of {reading.total} bits); both may come "
            "from one ancestor"
        )
    return True, (
        "the released weights carry the signature, and the suspect has these weights in disguise"
    )


def _links(accepted: bool | None, reason: str, evidence: Evidence) -> Links:
    reading = evidence.reading
    return Links(accepted, reason, reading.matched, reading.total, evidence.strength)
