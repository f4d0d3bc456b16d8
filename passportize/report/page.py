"""A verdict as one self-contained HTML file: numbers, pictures, and what they mean."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from passportize.errors import InvalidArgument, MissingExtra, PassportizeError
from passportize.report.examination import Examination
from passportize.report.findings import findings_of, limits_of, odds_in_words, sentence_of
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
    from passportize import __version__

    source = resources.files("passportize.report").joinpath("report.html").read_text("utf-8")
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        source
    )
    return template.render(
        title=title,
        word=WORDS[verdict.accepted],
        outcome={True: "accepted", False: "refused", None: "open"}[verdict.accepted],
        verdict=verdict,
        examination=examination,
        sentence=sentence_of(verdict, examination.owner if examination else ""),
        limits=limits_of(verdict),
        findings=findings_of(verdict),
        asked=odds_in_words(verdict.accept_strength),
        facts=_facts(verdict, examination),
        version=__version__,
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


def _facts(verdict: Verdict, examination: Examination | None) -> list[tuple[str, str]]:
    message = "not readable" if verdict.message is None else verdict.message.text
    facts = [("Owner message, as read from the weights", message)]
    if verdict.total:
        facts += [
            ("Bits that match", f"{verdict.matched:,} / {verdict.total:,}"),
            ("p-value", f"{verdict.p_value}, {odds_in_words(verdict.strength)}"),
            ("Layers found by", verdict.matched_by),
        ]
    if verdict.same_weights is not None:
        same = "the released weights, bit for bit"
        same = same if verdict.same_weights else f"not {same}"
        facts.append(("Compared with the release", same))
    if examination is not None and examination.commitment:
        facts.append(("Commitment of the passport", examination.commitment))
    if verdict.claim:
        facts.append(("Digest of the claim (SHA-256)", verdict.claim))
    if examination is not None:
        published = examination.published or ("none was shown, so nothing here says who was first")
        facts.append(("Date of publication", published))
        if examination.data:
            samples = f", {verdict.samples:,} samples" if verdict.samples else ""
            facts.append(("Data for the private branch", examination.data + samples))
        if examination.preprocessing:
            facts.append(("Pictures were prepared", examination.preprocessing))
    return [*facts, *(("Note", note) for note in verdict.notes)]
