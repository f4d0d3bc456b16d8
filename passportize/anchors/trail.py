"""How the anchor of a norm was searched for: what every rule met on its way, as a value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from passportize.signature.site import Anchor, AnchorPart

__all__ = [
    "KEPT",
    "SEARCHED",
    "SOURCES",
    "TAKEN",
    "Attempt",
    "Log",
    "Met",
    "Step",
    "Trail",
    "named",
]

SOURCES = {
    "user": "the weights that the user named",
    "fx-meta": "the graph with shapes",
    "fx-leaf": "the graph without shapes",
    "autograd": "the autograd graph of a real forward pass",
    "order": "the order of registration",
}
"""Who is asked for the anchor of a norm, in this order; the first answer counts."""

TAKEN = "taken"
"""Verdict on the weight that became the anchor."""

SEARCHED = "no weight was found from here in an earlier search"
"""Verdict on a place that another search has been to; :attr:`Met.before` says which."""

KEPT = 32
"""So much of what a search met is kept, the nearest to the norm first."""


@dataclass(frozen=True)
class Step:
    """One step of the forward pass.

    Attributes:
        name: Plain name: ``"add"``, ``"relu"``; ``"norm"``, ``"weight"`` or ``"module"`` for a
            module that is one step, ``"input"``, ``"parameter"`` or ``"constant"`` for a tensor
            that no step made.
        where: Dotted name of the module that it runs in (of the module, the parameter or the
            input itself, if the step is one); empty where that is not known.
        factor: Name of the parameter that a product multiplies channels with; empty elsewhere.
    """

    name: str
    where: str = ""
    factor: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.where})" if self.where else self.name


@dataclass(frozen=True)
class Met:
    """A place where a search went no further.

    Attributes:
        step: The step there; None where a weight was named or looked up without any.
        verdict: :data:`TAKEN`, or why no anchor was found here.
        weight: Name of the weight that was met; empty where there is none or several.
        crossed: The steps between it and the norm, nearest to the norm last.
        parts: The rows that were taken; empty where none were.
        pieces: For a concatenation, the search behind each piece, up to the first that failed.
        before: Name of the norm in whose search nothing was found from here; None elsewhere.
    """

    step: Step | None
    verdict: str
    weight: str = ""
    crossed: tuple[Step, ...] = ()
    parts: tuple[AnchorPart, ...] = ()
    pieces: tuple[Attempt, ...] = ()
    before: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-compatible form."""
        return {
            "step": None if self.step is None else vars(self.step).copy(),
            "verdict": self.verdict,
            "weight": self.weight,
            "crossed": [vars(step).copy() for step in self.crossed],
            "parts": [part.to_dict() for part in self.parts],
            "pieces": [piece.to_dict() for piece in self.pieces],
            "before": self.before,
        }


@dataclass(frozen=True)
class Attempt:
    """One search for the anchor of a norm, by one rule.

    Attributes:
        source: Who was asked, one of :data:`SOURCES`, or ``"own"`` where nobody had to be.
        rule: ``"upstream"``, ``"concat"``, ``"downstream"``, or the source where it has one rule;
            ``"anywhere upstream"`` where autograd looks behind other linear maps as well.
        channels: The number of channels looked for, 0 for any.
        dim: The dimension that counts them in the tensor where the search began, where known.
        start: The step where the search began: the one that made the norm's input, or, downstream,
            the norm. None where there is none.
        end: Where the anchor was found, None if it was not.
        met: The other places where the search went no further, in the order in which it got there.
        more: How many more such places there were than are kept.
    """

    source: str
    rule: str
    channels: int = 0
    dim: int | None = None
    start: Step | None = None
    end: Met | None = None
    met: tuple[Met, ...] = ()
    more: int = 0

    @property
    def parts(self) -> tuple[AnchorPart, ...]:
        """The rows that were found; empty if none were."""
        return self.end.parts if self.end is not None else ()

    @property
    def crossed(self) -> tuple[Step, ...]:
        """The steps between the anchor and the norm, nearest to the norm last."""
        return self.end.crossed if self.end is not None else ()

    @property
    def anchor(self) -> Anchor | None:
        """What was found, None if nothing was."""
        end = self.end
        if end is None:
            return None
        rule = self.rule if self.source.startswith("fx") else self.source
        return Anchor(end.parts, rule, tuple(step.name for step in end.crossed))

    def to_dict(self) -> dict[str, Any]:
        """JSON-compatible form."""
        return {
            "source": self.source,
            "rule": self.rule,
            "channels": self.channels,
            "dim": self.dim,
            "start": None if self.start is None else vars(self.start).copy(),
            "end": None if self.end is None else self.end.to_dict(),
            "met": [met.to_dict() for met in self.met],
            "more": self.more,
        }


@dataclass(frozen=True)
class Trail:
    """Everything that was tried to find the anchor of one norm.

    Attributes:
        name: Dotted name of the norm.
        attempts: The searches, in the order in which they were made.
        not_asked: ``(source, reason)`` for everybody who was not asked.
    """

    name: str
    attempts: tuple[Attempt, ...] = ()
    not_asked: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, name: str, attempts: Sequence[Attempt], silent: Mapping[str, str]) -> Trail:
        """The trail of a norm.

        Args:
            name: Name of the norm.
            attempts: What was tried.
            silent: Why a source was not asked, by source, where that is the same for all norms.
        """
        asked = {attempt.source for attempt in attempts}
        bound = False
        not_asked: list[tuple[str, str]] = []
        for source in SOURCES:
            if source in asked:
                bound = bound or any(made.parts for made in attempts if made.source == source)
            elif source == "user":
                not_asked.append((source, "anchors= does not name this norm"))
            elif bound and source != "autograd":  # which gives a second opinion
                not_asked.append((source, "there is an anchor already"))
            else:
                not_asked.append((source, silent.get(source, "the norm is not in it")))
        return cls(name, tuple(attempts), tuple(not_asked))

    @property
    def answer(self) -> Attempt | None:
        """The attempt that the anchor comes from, None if all failed."""
        return next((attempt for attempt in self.attempts if attempt.parts), None)


@dataclass
class Log:
    """What a search notes down while it goes on.

    Attributes:
        end: See :class:`Attempt`.
        met: See :class:`Attempt`.
        more: See :class:`Attempt`.
    """

    end: Met | None = None
    met: list[Met] = field(default_factory=list)
    more: int = 0

    def add(self, met: Met) -> None:
        """Note a place where the search went no further: the end, if it has the anchor."""
        if met.parts:
            self.end = met
        elif len(self.met) < KEPT:
            self.met.append(met)
        else:
            self.more += 1

    def attempt(
        self, source: str, rule: str, channels: int, dim: int | None, start: Step | None
    ) -> Attempt:
        """What was noted, as a value; the arguments are attributes of :class:`Attempt`."""
        if self.end is not None and len(self.end.parts) > 1:
            rule = "concat"
        met = tuple(self.met)
        return Attempt(source, rule, channels, dim, start, self.end, met, self.more)


def named(source: str, parts: tuple[AnchorPart, ...]) -> Attempt:
    """The attempt of somebody who had nothing to search for.

    Args:
        source: ``"user"`` or ``"own"``.
        parts: The rows.
    """
    met = Met(None, TAKEN, parts[0].weight, parts=parts)
    return Attempt(source, source, sum(part.channels for part in parts), end=met)
