"""The verdict: a value that says what was found, and prints as a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from passportize.passport.message import OwnerMessage
from passportize.signature.null_model import probability_text
from passportize.thresholds import ACCEPT_STRENGTH, FIDELITY_GAP
from passportize.verification.links import Links

__all__ = ["SiteVerdict", "Verdict"]


@dataclass(frozen=True)
class SiteVerdict:
    """What was read at one site.

    Attributes:
        name: The site's name in the claim.
        found_as: The weight in the suspect that it was read from; empty if missing.
        matched: Bits that are those of the passport.
        bits: Bits read; 0 if missing.
        note: Why it is missing.
    """

    name: str
    found_as: str
    matched: int
    bits: int
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """Result of :func:`passportize.verify`. ``print(verdict)`` shows a table.

    Attributes:
        accepted: The signature test alone: whether its strength reaches the threshold; or, where
            it does not and the released weights were given, whether both ``links`` hold. None if
            it could not be judged; ``reason`` says why.
        reason: The verdict in words.
        matched: Signature bits that match.
        total: Signature bits that were read.
        log2_p: ``log2`` of the binomial tail of ``matched`` in ``total`` fair coins, exact.
        log2_alternatives: ``log2`` of the number of ways in which tensors could have been matched
            to the claim where names did not say; 0 where they did.
        strength: Bits of evidence, ``-log2_p - log2_alternatives``, 0 at least.
        sites: What was read at every site.
        matched_by: ``"name"`` or ``"order and shape"``.
        message: The owner message as read from the weights, None where its checksum fails.
        public_accuracy: Top-1 accuracy of the suspect in percent, None if not measured.
        private_accuracy: That of the private branch put back into it, None if not measured.
        fidelity: Whether private accuracy is close enough to public; None if not judged.
        fidelity_reason: Why it is or is not, or why it was not judged.
        same_weights: Whether the suspect is the released file, bit for bit; None without a claim.
        claim: Digest of the claim, empty without one.
        notes: What else the reader should know.
        accept_strength: The threshold for ``strength``.
        fidelity_gap: The threshold for the gap of the accuracies, in points.
        links: What the released weights say; None where they were not given or not needed.
        samples: How many samples the accuracies were measured on.
        fitted: Whether bits were read from the suspect's layers fitted anew to what they compute on
            the owner's inputs, and not as they are.
    """

    accepted: bool | None
    reason: str
    matched: int
    total: int
    log2_p: float
    log2_alternatives: float
    strength: float
    sites: tuple[SiteVerdict, ...]
    matched_by: str
    message: OwnerMessage | None
    public_accuracy: float | None
    private_accuracy: float | None
    fidelity: bool | None
    fidelity_reason: str
    same_weights: bool | None
    claim: str
    notes: tuple[str, ...] = ()
    accept_strength: float = ACCEPT_STRENGTH
    fidelity_gap: float = FIDELITY_GAP
    links: Links | None = None
    samples: int = 0
    fitted: bool = False

    @property
    def p_value(self) -> str:
        """``2**-strength`` as text, which does not underflow: ``"2^-4800"``."""
        return probability_text(-self.strength)

    def to_dict(self) -> dict[str, Any]:
        """JSON-compatible form."""
        record = asdict(self)
        record["p_value"] = self.p_value
        record["sites"] = [asdict(site) for site in self.sites]
        record["notes"] = list(self.notes)
        return record

    def __str__(self) -> str:
        return "\n".join([*self._table(), "", *self._summary()])

    def _table(self) -> list[str]:
        header = ("site", "found as", "bits", "note")
        rows = [
            (
                site.name or "(root)",
                site.found_as or "-",
                f"{site.matched}/{site.bits}" if site.bits else "missing",
                site.note,
            )
            for site in self.sites
        ]
        widths = [max(len(row[column]) for row in (header, *rows)) for column in range(3)]
        return [
            "  ".join([*(row[i].ljust(widths[i]) for i in range(3)), row[3]]).rstrip()
            for row in (header, *rows)
        ]

    def _summary(self) -> list[str]:
        lines = [
            f"signature: {self.matched} of {self.total} bits match, matched by {self.matched_by}",
            f"strength:  {self.strength:.1f} bits (p = {self.p_value}), "
            f"{self.accept_strength:g} needed",
        ]
        if self.log2_alternatives:
            lines.append(
                f"           after {self.log2_alternatives:.1f} bits for the ways of matching"
            )
        if self.message is not None:
            lines.append(f"message:   {self.message.text}")
        elif self.total:
            lines.append("message:   not readable")
        lines += self.links.lines() if self.links is not None else []
        if self.samples:
            lines.append(f"data:      {self.samples:,} samples")
        for name, value in (("public", self.public_accuracy), ("private", self.private_accuracy)):
            if value is not None:
                lines.append(f"{name + ':':10} {value:.2f} % accuracy")
        outcome = {True: "passed", False: "FAILED", None: "not judged"}[self.fidelity]
        lines.append(f"fidelity:  {outcome}: {self.fidelity_reason}")
        if self.claim:
            same = "the released weights, bit for bit" if self.same_weights else "not the same file"
            lines.append(f"weights:   {same}")
            lines.append(f"claim:     sha256 {self.claim}")
        lines += [f"note:      {note}" for note in self.notes]
        word = {True: "ACCEPTED", False: "REFUSED", None: "COULD NOT JUDGE"}[self.accepted]
        return [*lines, f"verdict:   {word}: {self.reason}"]
