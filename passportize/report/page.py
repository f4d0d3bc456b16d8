"""A verdict as one self-contained HTML file: numbers, pictures, and what they mean."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from passportize.errors import InvalidArgument, MissingExtra, PassportizeError
from passportize.report.examination import Examination
from passportize.report.sections import Section, Strangers, sections_of
from passportize.signature.reading import Reading
from passportize.utils.files import write_atomically
from passportize.verification.verdict import Verdict

__all__ = ["render_report", "write_report"]

WORDS = {True: "Accepted", False: "Refused", None: "Could not judge"}


def render_report(
    verdict: Verdict,
    *,
    title: str = "Verification report",
    reading: Reading | None = None,
    strangers: Strangers | None = None,
    before: Sequence[Section] = (),
    examination: Examination | None = None,
) -> str:
    """HTML of a verdict; the file needs nothing else, neither network nor scripts.

    Args:
        verdict: What to report.
        title: Heading of the page.
        reading: Responses of the channels, for a histogram.
        strangers: Other keys on the same model, for comparison.
        before: Parts to show between the verdict and its details.
        examination: What was examined, with what and when.

    Raises:
        InvalidArgument: ``verdict`` is none.
        MissingExtra: jinja2 or matplotlib is not installed.
    """
    if not isinstance(verdict, Verdict):
        raise InvalidArgument(f"expected a Verdict, got {type(verdict).__name__}")
    try:
        import jinja2
    except ImportError as error:
        raise MissingExtra(
            "reports need jinja2, which is not installed: pip install 'passportize[plots]'"
        ) from error
    source = resources.files("passportize.report").joinpath("report.html").read_text("utf-8")
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        source
    )
    return template.render(
        title=title,
        word=WORDS[verdict.accepted],
        outcome={True: "accepted", False: "refused", None: "open"}[verdict.accepted],
        verdict=verdict,
        cards=_cards(verdict),
        facts=_facts(verdict),
        sections=[*before, *sections_of(verdict, reading, strangers)],
    )


def write_report(path: str | os.PathLike[str], verdict: Verdict, **content: Any) -> Path:
    """Write the report of a verdict; the file appears complete or not at all.

    Args:
        path: Where to; an existing file is replaced.
        verdict: What to report.
        **content: As for :func:`render_report`.

    Raises:
        PassportizeError: The file cannot be written.
    """
    page = render_report(verdict, **content)
    write_atomically(path, page.encode("utf-8"), error=PassportizeError)
    return Path(path)


def _cards(verdict: Verdict) -> list[tuple[str, str, str]]:
    """Number, what it is, a remark."""
    cards = [
        (f"{verdict.matched} / {verdict.total}", "signature bits match", "read from the weights"),
        (
            f"{verdict.strength:.0f} bits",
            "strength",
            f"p = {verdict.p_value}; {verdict.accept_strength:g} bits are needed",
        ),
    ]
    if verdict.public_accuracy is not None:
        cards.append((f"{verdict.public_accuracy:.1f} %", "public accuracy", "the model as it is"))
    if verdict.private_accuracy is not None:
        remark = "with the owner's key put back"
        cards.append((f"{verdict.private_accuracy:.1f} %", "private accuracy", remark))
    return cards


def _facts(verdict: Verdict) -> list[tuple[str, str]]:
    message = "not readable" if verdict.message is None else verdict.message.text
    fidelity = {True: "passed", False: "failed", None: "not judged"}[verdict.fidelity]
    facts = [
        ("Owner message, as read from the weights", message),
        ("Fidelity", f"{fidelity}: {verdict.fidelity_reason}"),
        ("Layers matched by", verdict.matched_by),
    ]
    if verdict.same_weights is not None:
        same = "the released weights, bit for bit" if verdict.same_weights else "changed"
        facts.append(("Weights", same))
    if verdict.claim:
        facts.append(("Digest of the claim (SHA-256)", verdict.claim))
    return [*facts, *(("Note", note) for note in verdict.notes)]
