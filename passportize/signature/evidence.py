"""One reading of the signature, what it weighs, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from passportize.signature.layout import Layout
from passportize.signature.matching import BY_NAME, BY_ORDER, Table, match_layout
from passportize.signature.model_key import ModelKey
from passportize.signature.null_model import log2_binomial_tail
from passportize.signature.reading import Reading, prepare_sites, read_signature
from passportize.thresholds import ACCEPT_STRENGTH

__all__ = ["Evidence", "judge_evidence", "read_evidence"]


@dataclass(frozen=True)
class Evidence:
    """One reading of the signature and what it weighs.

    Attributes:
        reading: The bits.
        log2_p: ``log2`` of the binomial tail of the bits that match.
        log2_alternatives: ``log2`` of the number of ways in which the tensors could have been
            matched.
        matched_by: How the tensors that were read were found.
        names: Whether names were looked at.
    """

    reading: Reading
    log2_p: float
    log2_alternatives: float
    matched_by: str
    names: bool

    @property
    def strength(self) -> float:
        """Bits of evidence."""
        return max(0.0, -self.log2_p - self.log2_alternatives)


def read_evidence(
    tensors: Mapping[str, Tensor], key: ModelKey, layout: Layout, structure: Table
) -> Evidence:
    """The stronger of the readings by name and, if that fails, by order and shape.

    Args:
        tensors: The suspect's tensors by name.
        key: The claimant's key for the layout.
        layout: Where the bits lie.
        structure: Names and shapes of the released tensors, in their order.
    """

    def weigh(names: bool, cost: float) -> Evidence:
        match = match_layout(layout, structure, tensors, names)
        reading = read_signature(key, layout, prepare_sites(layout, tensors, match))
        used = [name for site in reading.sites for name in site.prepared.tensors]
        return Evidence(
            reading,
            log2_binomial_tail(reading.matched, reading.total),
            match.log2_alternatives(used) + cost,
            BY_NAME if match.by_name(used) else BY_ORDER,
            names,
        )

    first = weigh(names=True, cost=0.0)
    if first.strength >= ACCEPT_STRENGTH:
        return first
    # The names may be those of other layers (a Sequential counted anew). One bit for the second
    # look.
    second = weigh(names=False, cost=1.0)
    return second if second.strength > first.strength else first


def judge_evidence(evidence: Evidence, layout: Layout) -> tuple[bool | None, str]:
    """Whether the signature is accepted, None if that cannot be judged, and why."""
    total, matched = evidence.reading.total, evidence.reading.matched
    if not layout.bits:
        return None, "no norm of the suspect can carry a signature"
    if not total:
        return None, "no site of the claim is in the suspect; is it a model of this architecture?"
    if total - evidence.log2_alternatives < ACCEPT_STRENGTH:
        return None, (
            f"{total} of {layout.bits} bits are there to be read, too few to reach "
            f"{ACCEPT_STRENGTH:g} bits of strength even if all match"
        )
    if evidence.strength >= ACCEPT_STRENGTH:
        return True, f"the weights carry the signature ({matched} of {total} bits)"
    return False, f"the weights do not carry the signature ({matched} of {total} bits)"
