"""One reading of the signature, what it weighs, and what follows from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from passportize.signature.assignment import assign_tensors
from passportize.signature.factored_rows import has_factors, without_mean_of_products
from passportize.signature.kernel_layouts import in_other_layouts
from passportize.signature.layout import Layout
from passportize.signature.matching import (
    BY_ASSIGNMENT,
    BY_LAYOUT,
    BY_NAME,
    BY_NAME_CENTRED,
    match_names,
)
from passportize.signature.model_key import ModelKey
from passportize.signature.null_model import log2_binomial_tail
from passportize.signature.reading import Reading, prepare_sites, read_signature
from passportize.thresholds import ACCEPT_STRENGTH, FITTED_WAYS

__all__ = [
    "LOOKS_PRICE",
    "Evidence",
    "judge_evidence",
    "looks_price",
    "read_by_name",
    "read_evidence",
]

LOOKS_PRICE = 2.0
"""Bits that each look costs, because there are several.

A suspect is read at names, at assignments, at assignments of kernels in the layouts of other
frameworks and, with the released weights at hand, after a disguise was undone. The chance that any
of four looks reaches a strength is at most four times that of one. Where a layout has rows behind
factors there is a fifth, and where it names inputs the suspect is looked at as it is and fitted
anew on them in several ways: see :func:`looks_price`.
"""


def looks_price(layout: Layout) -> float:
    """Bits that each look costs, by how many there are; the layout decides and enters the key."""
    price = math.log2(5) if has_factors(layout) else LOOKS_PRICE
    return price + math.log2(1 + len(FITTED_WAYS)) if layout.inputs else price


@dataclass(frozen=True)
class Evidence:
    """One reading of the signature and what it weighs.

    Attributes:
        reading: The bits.
        log2_p: ``log2`` of the binomial tail of the bits that match.
        log2_alternatives: ``log2`` of the number of ways in which the suspect could have been
            read: looks, times assignments of its tensors.
        matched_by: How the tensors that were read were found.
        found: The suspect's name for the weights of the layout, with the layout of the kernel
            where it is another than torch's; without those that it lacks.
    """

    reading: Reading
    log2_p: float
    log2_alternatives: float
    matched_by: str
    found: Mapping[str, str]

    @property
    def strength(self) -> float:
        """Bits of evidence."""
        return max(0.0, -self.log2_p - self.log2_alternatives)

    @property
    def suffices(self) -> bool:
        """Whether it would be enough for acceptance if all bits that were read matched."""
        return self.reading.total - self.log2_alternatives >= ACCEPT_STRENGTH


def read_evidence(tensors: Mapping[str, Tensor], key: ModelKey, layout: Layout) -> Evidence:
    """The strongest of the readings by name and, while these fail or lack sites, by assignments.

    What is read is decided by the layout, which enters the key, and by the suspect; by nothing
    else that a claimant could bring.

    Args:
        tensors: The suspect's tensors by name.
        key: The claimant's key for the layout.
        layout: Where the bits lie.
    """
    best = read_by_name(tensors, key, layout)
    # A file may have the names of some of its layers alone.
    if best.strength >= ACCEPT_STRENGTH and best.reading.total == layout.bits:
        return best
    if has_factors(layout):
        found = best.found
        level = without_mean_of_products(layout, tensors, found)
        centred = _weigh(level, key, layout, found, 0.0, BY_NAME_CENTRED)
        best = centred if centred.strength > best.strength else best
        if best.strength >= ACCEPT_STRENGTH and best.reading.total == layout.bits:
            return best
    # The names may be those of other layers (a Sequential counted anew), or nobody's.
    known: dict[str, dict[str, int]] = {}
    second = _read_by_assignment(tensors, key, layout, BY_ASSIGNMENT, known)
    best = second if second.strength > best.strength else best
    # Also where that suffices: a square matrix can be read, to no avail, in the wrong layout.
    turned = in_other_layouts(tensors, set(layout.weights.values()))
    if not turned:
        return best
    third = _read_by_assignment({**tensors, **turned}, key, layout, BY_LAYOUT, known)
    return third if third.strength > best.strength else best


def _read_by_assignment(
    tensors: Mapping[str, Tensor],
    key: ModelKey,
    layout: Layout,
    matched_by: str,
    known: dict[str, dict[str, int]],
) -> Evidence:
    assigned = assign_tensors(key, layout, tensors, known)
    price = assigned.log2_alternatives
    return _weigh(tensors, key, layout, assigned.found, price, matched_by)


def read_by_name(
    tensors: Mapping[str, Tensor],
    key: ModelKey,
    layout: Layout,
    unread: Mapping[str, Tensor] | None = None,
    partly: bool = False,
) -> Evidence:
    """The reading by name alone.

    Args:
        tensors: The suspect's tensors by name.
        key: The claimant's key for the layout.
        layout: Where the bits lie.
        unread: Entries of the tensors that are not read, see
            :func:`~passportize.signature.reading.prepare_sites`.
        partly: Whether rows of which nothing is read are not counted.
    """
    found = match_names(layout, tensors)
    return _weigh(tensors, key, layout, found, 0.0, BY_NAME, unread, partly)


def _weigh(
    tensors: Mapping[str, Tensor],
    key: ModelKey,
    layout: Layout,
    found: Mapping[str, str],
    price: float,
    matched_by: str,
    unread: Mapping[str, Tensor] | None = None,
    partly: bool = False,
) -> Evidence:
    reading = read_signature(key, layout, prepare_sites(layout, tensors, found, unread), partly)
    log2_p = log2_binomial_tail(reading.matched, reading.total)
    return Evidence(reading, log2_p, price + looks_price(layout), matched_by, found)


def judge_evidence(evidence: Evidence, layout: Layout) -> tuple[bool | None, str]:
    """Whether the signature is accepted, None if that cannot be judged, and why."""
    total, matched = evidence.reading.total, evidence.reading.matched
    if not layout.bits:
        return None, "no norm of the suspect can carry a signature"
    if not total:
        return None, "no site of the claim is in the suspect; is it a model of this architecture?"
    if not evidence.suffices:
        return None, (
            f"{total} of {layout.bits} bits are there to be read, too few to reach "
            f"{ACCEPT_STRENGTH:g} bits of strength even if all match"
        )
    if evidence.strength >= ACCEPT_STRENGTH:
        return True, f"the weights carry the signature ({matched} of {total} bits)"
    return False, f"the weights do not carry the signature ({matched} of {total} bits)"
