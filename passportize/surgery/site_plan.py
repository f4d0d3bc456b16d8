"""The plan: what surgery would do, as a value to look at first."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from passportize.anchors.trail import Trail
from passportize.errors import UnknownSite
from passportize.signature.site import Role, Site
from passportize.surgery.explanation import Explanation
from passportize.utils.names import closest_names

__all__ = ["Plan"]

_ROOT = "(root)"


@dataclass(frozen=True)
class Plan:
    """What surgery would do. ``print(plan)`` shows a table, ``print(plan.explain(name))`` one norm.

    Attributes:
        model: Class name of the model.
        sites: Every normalization layer, in registration order.
        method: How the anchors were found (``"fx-meta"``, ``"fx-leaf"``, ``"autograd"``, ...).
        notes: What the user should know.
        samples_only: Norms that see one value per channel of each sample, so that statistics of a
            batch are taken over its samples alone.
        passes: How a joint training step will run, ``"doubled"`` or ``"separate"``; empty where
            there is no private branch, or nobody asked.
        joint_step: The same as a sentence, with the reason and the cost.
        trails: How the anchors were searched for; :meth:`explain` shows them.
    """

    model: str
    sites: tuple[Site, ...]
    method: str
    notes: tuple[str, ...] = ()
    samples_only: frozenset[str] = frozenset()
    passes: str = ""
    joint_step: str = ""
    trails: tuple[Trail, ...] = field(default=(), repr=False, compare=False)

    def role(self, role: Role) -> tuple[Site, ...]:
        """The sites of one role."""
        return tuple(site for site in self.sites if site.role is role)

    @property
    def bits(self) -> int:
        """Signature bits that the model can carry."""
        return sum(site.bits for site in self.sites)

    def explain(self, name: str) -> Explanation:
        """How the anchor of a norm was found, or why it was not; ``print`` shows it.

        Args:
            name: Dotted name of the norm or an alias, as ``print(plan)`` shows it.

        Raises:
            UnknownSite: There is no such norm.
        """
        wanted = "" if name == _ROOT else name
        for site in self.sites:
            if wanted in (site.name, *site.aliases):
                found = (trail for trail in self.trails if trail.name == site.name)
                return Explanation(site, next(found, Trail(site.name)))
        names = [name for site in self.sites for name in (site.name or _ROOT, *site.aliases)]
        raise UnknownSite(
            f"explain: {name!r} is none of the {len(self.sites)} layers of the plan of "
            f"{self.model}; print(plan) lists them." + closest_names(name, names)
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-compatible form."""
        return {
            "model": self.model,
            "method": self.method,
            "bits": self.bits,
            "passes": self.passes,
            "joint_step": self.joint_step,
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
            kind = site.layer_type.rpartition(".")[2]
            bits = str(site.bits) if site.bits else ""
            rows.append((site.name or _ROOT, kind, bits, site.role.value, detail))
        return rows

    def summary(self) -> str:
        """One line: how many sites of each role, how many bits."""
        counts = [f"{len(self.role(role))} {role.value}" for role in Role if self.role(role)]
        kind = "layers" if self.method == "weights" else "norms"
        return f"{self.model}: {len(self.sites)} {kind}, {', '.join(counts)}; {self.bits} bits"

    def __str__(self) -> str:
        header = ("site", "norm", "bits", "role", "anchor or reason")
        table = [header, *self.rows()]
        widths = [max(len(row[column]) for row in table) for column in range(4)]
        lines = [
            "  ".join([*(row[i].ljust(widths[i]) for i in range(4)), row[4]]).rstrip()
            for row in table
        ]
        step = [self.joint_step] if self.joint_step else []
        notes = [f"note: {note}" for note in self.notes]
        return "\n".join([*lines, self.summary(), *step, *notes])
