"""The plan: what surgery would do, as a value to look at first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from passportize.signature.site import Role, Site

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """What surgery would do. ``print(plan)`` shows a table.

    Attributes:
        model: Class name of the model.
        sites: Every normalization layer, in registration order.
        method: How the anchors were found (``"fx-meta"``, ``"fx-leaf"``, ``"autograd"``, ...).
        notes: What the user should know.
        samples_only: Norms that see one value per channel of each sample, so that statistics of a
            batch are taken over its samples alone.
    """

    model: str
    sites: tuple[Site, ...]
    method: str
    notes: tuple[str, ...] = ()
    samples_only: frozenset[str] = frozenset()

    def role(self, role: Role) -> tuple[Site, ...]:
        """The sites of one role."""
        return tuple(site for site in self.sites if site.role is role)

    @property
    def bits(self) -> int:
        """Signature bits that the model can carry."""
        return sum(site.bits for site in self.sites)

    def to_dict(self) -> dict[str, Any]:
        """JSON-compatible form."""
        return {
            "model": self.model,
            "method": self.method,
            "bits": self.bits,
            "sites": [site.to_dict() for site in self.sites],
            "notes": list(self.notes),
        }

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """Table rows: name, norm, bits, what happens, anchor or reason."""
        rows = []
        for site in self.sites:
            detail = site.reason
            if site.anchor is not None and site.role is Role.BOUND:
                weights = [part.weight for part in site.anchor.parts]
                more = f" and {len(weights) - 1} more" if len(weights) > 1 else ""
                detail = f"{site.anchor.rule}: {weights[0]}{more}"
            kind = site.norm_type.rpartition(".")[2]
            bits = str(site.bits) if site.bits else ""
            rows.append((site.name or "(root)", kind, bits, site.role.value, detail))
        return rows

    def summary(self) -> str:
        """One line: how many sites of each role, how many bits."""
        counts = [f"{len(self.role(role))} {role.value}" for role in Role if self.role(role)]
        return f"{self.model}: {len(self.sites)} norms, {', '.join(counts)}; {self.bits} bits"

    def __str__(self) -> str:
        header = ("site", "norm", "bits", "role", "anchor or reason")
        table = [header, *self.rows()]
        widths = [max(len(row[column]) for row in table) for column in range(4)]
        lines = [
            "  ".join([*(row[i].ljust(widths[i]) for i in range(4)), row[4]]).rstrip()
            for row in table
        ]
        return "\n".join([*lines, self.summary(), *(f"note: {note}" for note in self.notes)])
