"""A verdict as one self-contained HTML file: numbers, pictures, and what they mean."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from passportize import report_plots as plots
from passportize.atomic_file import write_atomically
from passportize.errors import InvalidArgument, MissingExtra, PassportizeError
from passportize.links import Links
from passportize.signature import Reading
from passportize.thresholds import ACCEPT_STRENGTH, LINK_LIKENESS, LINK_P_VALUE
from passportize.verdict import Verdict

__all__ = ["Section", "Strangers", "render_report", "write_report"]

WORDS = {True: "Accepted", False: "Refused", None: "Could not judge"}


@dataclass(frozen=True)
class Strangers:
    """What other keys found in the same model.

    Attributes:
        strengths: Strength of each stranger's signature test, in bits.
        accuracies: Private accuracy under strangers' keys in percent, for every way of measuring
            it by name.
        chance: Accuracy of guessing, in percent.
    """

    strengths: Sequence[float] = ()
    accuracies: Mapping[str, Sequence[float]] = field(default_factory=dict)
    chance: float = 0.0


@dataclass(frozen=True)
class Section:
    """One more part of a report.

    Attributes:
        title: Heading.
        text: A paragraph, plain text.
        header, rows: A table, both empty for none.
        picture: SVG text, empty for none.
        caption: What the picture shows; it is also read out in its place.
    """

    title: str
    text: str = ""
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    picture: str = ""
    caption: str = ""

    @property
    def source(self) -> str:
        """The picture as a data URI."""
        return plots.data_uri(self.picture)


def render_report(
    verdict: Verdict,
    *,
    title: str = "Verification report",
    reading: Reading | None = None,
    strangers: Strangers | None = None,
    before: Sequence[Section] = (),
) -> str:
    """HTML of a verdict; the file needs nothing else, neither network nor scripts.

    Args:
        verdict: What to report.
        title: Heading of the page.
        reading: Responses of the channels, for a histogram.
        strangers: Other keys on the same model, for comparison.
        before: Parts to show between the verdict and its details.

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
    source = resources.files("passportize").joinpath("report.html").read_text("utf-8")
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
        sections=[*before, *_sections(verdict, reading, strangers)],
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
    message = "not readable"
    if verdict.message is not None:
        shown = [verdict.message.owner, verdict.message.contact, verdict.message.date]
        message = ", ".join(part for part in shown if part)
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


def _sections(
    verdict: Verdict, reading: Reading | None, strangers: Strangers | None
) -> list[Section]:
    rows = [
        (
            site.name or "(root)",
            site.found_as or "-",
            f"{site.matched} / {site.bits}" if site.bits else "missing",
            site.note,
        )
        for site in verdict.sites
    ]
    sections = []
    if verdict.sites:
        sections.append(
            Section(
                "Bits per layer",
                "Every channel of a protected layer carries one bit. A key that knows nothing of "
                "the weights would match about half of them.",
                picture=plots.bits_picture(verdict),
                caption=f"{verdict.matched} of {verdict.total} bits match, layer by layer",
            )
        )
    if reading is not None and bool((reading.confidence > 0).any()):
        sections.append(
            Section(
                "Responses by signature bit",
                "How clearly the bits are written: the response of a channel's weights to the "
                "key, in standard deviations of an unmarked model. Two humps that lie apart are "
                "a mark; one hump around zero for both bits is none.",
                picture=plots.response_picture(reading),
                caption="Histogram of responses for bits 0 and 1 of the key",
            )
        )
    if verdict.links is not None:
        sections.append(_links_section(verdict.links))
    sections += _stranger_sections(verdict, strangers or Strangers())
    if rows:
        header = ("Site", "Found as", "Bits", "Note")
        sections.append(Section("Every site", header=header, rows=rows))
    return sections


def _links_section(links: Links) -> Section:
    found = links.similarity
    rows = [
        (
            "key -> released weights",
            f"{links.released_matched} / {links.released_total} bits",
            f"{links.released_strength:.0f} bits of strength, {ACCEPT_STRENGTH:g} needed; exact",
        )
    ]
    if found is not None:
        rows += [
            (
                "released weights -> suspect",
                f"likeness {found.likeness:.3f}, {LINK_LIKENESS:g} needed",
                f"p = {found.p_value:.2g} against {found.matchings} random matchings of "
                f"{found.rows} rows, {LINK_P_VALUE:g} needed",
            ),
            (
                "aligned suspect, for information",
                f"{links.aligned_matched} / {links.aligned_total} bits",
                f"{links.moved} of {links.channels} channels had another place; no p-value, for "
                "the alignment looked at weights that know the key",
            ),
        ]
    return Section(
        "Through the released weights",
        "The signature does not read plainly. The released weights, which the claim names, lead "
        "from the key to the suspect in two steps, each with a test of its own. The second looks "
        "at entries of the weights that were not used to undo the disguise.",
        header=("Link", "Found", "Test"),
        rows=rows,
    )


def _stranger_sections(verdict: Verdict, strangers: Strangers) -> list[Section]:
    sections = []
    if strangers.accuracies and verdict.private_accuracy is not None:
        sections.append(
            Section(
                "The owner's key against strangers' keys",
                "The private branch is a function of key and weights. With another key it falls "
                "to about chance.",
                picture=plots.accuracy_picture(
                    verdict.private_accuracy,
                    verdict.public_accuracy,
                    strangers.accuracies,
                    strangers.chance,
                ),
                caption=f"Private accuracy: owner {verdict.private_accuracy:.1f} %, strangers "
                f"{max(max(values) for values in strangers.accuracies.values()):.1f} % at most",
            )
        )
    if strangers.strengths:
        highest = max(strangers.strengths)
        sections.append(
            Section(
                f"Signatures of {len(strangers.strengths)} strangers",
                f"The highest strength that one of them reached is {highest:.1f} bits, about what "
                "chance gives among so many.",
                picture=plots.strength_picture(
                    verdict.strength, strangers.strengths, verdict.accept_strength
                ),
                caption=f"Strengths: owner {verdict.strength:.0f} bits, strangers {highest:.1f} "
                f"at most, threshold {verdict.accept_strength:g}",
            )
        )
    return sections
