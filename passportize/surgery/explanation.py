"""One norm of a plan explained: how its anchor was found, or why it was not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from passportize.anchors.trail import SOURCES, Attempt, Met, Trail
from passportize.signature.site import AnchorPart, Site

__all__ = ["Explanation"]

_SHOWN = 12
"""So many lines of one kind are printed for a search; the fields hold them all."""


@dataclass(frozen=True)
class Explanation:
    """How the anchor of a norm was found or why it was not. ``print`` shows it.

    Attributes:
        site: What surgery would do with the norm, and why.
        trail: What was tried to find its anchor: who was asked, where each search began, what it
            crossed, which weights it met and what was said of them.
    """

    site: Site
    trail: Trail

    def to_dict(self) -> dict[str, Any]:
        """JSON-compatible form."""
        answer = self.trail.answer
        return {
            "site": self.site.to_dict(),
            "source": answer.source if answer is not None else None,
            "attempts": [attempt.to_dict() for attempt in self.trail.attempts],
            "not_asked": dict(self.trail.not_asked),
        }

    def __str__(self) -> str:
        return "\n".join([*self._head(), *self._body()])

    def _head(self) -> Iterator[str]:
        site = self.site
        kind = site.layer_type.rpartition(".")[2]
        channels = f", {site.channels} channels" if site.channels else ""
        yield f"{site.name or '(root)'} ({kind}{channels}): {site.role.value}"
        if site.aliases:
            yield _line("also called", ", ".join(site.aliases))
        if site.reason:
            yield _line("because", site.reason)
        if site.anchor is not None:
            yield from _first([_line("anchor", _rows(part)) for part in site.anchor.parts])

    def _body(self) -> Iterator[str]:
        answer = self.trail.answer
        answered = False
        for attempt in self.trail.attempts:
            if answered and answer is not None:
                yield from _second_opinion(attempt, answer)
                continue
            answered = attempt is answer
            yield _title(attempt, "found" if answered else "nothing found")
            yield from _walk(attempt)
        silent = dict(self.trail.not_asked)
        for reason in dict.fromkeys(silent.values()):
            names = [SOURCES[source] for source, why in silent.items() if why == reason]
            yield f"not asked: {', '.join(names)}: {reason}"
        if not self.trail.attempts and not self.trail.not_asked:
            yield "nobody was asked for an anchor"


def _line(label: str, text: str) -> str:
    return f"  {label:<11}  {text}"


def _first(lines: Sequence[str]) -> list[str]:
    """The first lines, and how many more there are."""
    left = len(lines) - _SHOWN
    return [*lines[:_SHOWN], _line("", f"and {left} more")] if left > 0 else list(lines)


def _rows(part: AnchorPart) -> str:
    """Which rows of a weight answer for channels of the norm."""
    last = part.start + part.channels * part.repeats - 1
    side = "" if part.axis == "output" else " of its input side"
    return f"{part.weight}, rows {part.start} to {last}{side}"


def _title(attempt: Attempt, outcome: str) -> str:
    who = SOURCES.get(attempt.source, "the layer itself")
    rule = "" if attempt.rule == attempt.source else f", {attempt.rule}"
    return f"asked: {who} ({attempt.source}){rule}: {outcome}"


def _second_opinion(attempt: Attempt, answer: Attempt) -> Iterator[str]:
    """What somebody says who was asked although the anchor was found already."""
    weights = list(dict.fromkeys(part.weight for part in attempt.parts))
    if not weights:
        return
    same = weights == list(dict.fromkeys(part.weight for part in answer.parts))
    more = f" and {len(weights) - 1} more" if len(weights) > 1 else ""
    yield _title(attempt, "the same" if same else f"{weights[0]}{more}, which does not count")


def _walk(attempt: Attempt) -> Iterator[str]:
    """Where a search began, what it crossed, and what it met."""
    if attempt.start is not None:
        wanted = f", {attempt.channels} channels" if attempt.channels else ""
        dim = "" if attempt.dim is None else f" in dimension {attempt.dim}"
        yield _line("began at", f"{attempt.start}{wanted}{dim}")
    # The step nearest to the norm was crossed first.
    yield from _first([_line("crossed", str(step)) for step in reversed(attempt.crossed)])
    if attempt.end is not None:
        yield _line("taken", _place(attempt.end))
        yield from _first([_line("", _piece(piece)) for piece in attempt.end.pieces])
    lines = []
    for met in attempt.met:
        lines.append(_line("not taken", f"{_place(met)}: {met.verdict}{_behind(met)}"))
        lines += [_line("", _piece(piece)) for piece in met.pieces]
    yield from _first(lines)
    if attempt.more:
        yield _line("", f"and {attempt.more} more, of which nothing was kept")


def _place(met: Met) -> str:
    if met.step is None or (met.weight and met.step.name == "weight"):
        return met.weight
    return f"{met.weight}, {met.step}" if met.weight else str(met.step)


def _behind(met: Met) -> str:
    """What lies between a place and the norm, in the order in which it was crossed."""
    names = [step.name for step in reversed(met.crossed)]
    if not names:
        return ""
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f" (behind {', '.join(names[:4])}{more})"


def _piece(piece: Attempt) -> str:
    """One line on a piece of a concatenation."""
    wanted = f"{piece.channels} channels from " if piece.channels else ""
    if piece.parts:
        weights = list(dict.fromkeys(part.weight for part in piece.parts))
        more = f" and {len(weights) - 1} more" if len(weights) > 1 else ""
        return f"piece: {wanted}{weights[0]}{more}"
    last = piece.met[-1] if piece.met else None
    why = f": {_place(last)}: {last.verdict}{_behind(last)}" if last is not None else ""
    return f"piece: {wanted}{piece.start}, nothing found{why}"
