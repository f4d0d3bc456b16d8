"""The parts of a report: what each shows of a verdict, and what it means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from passportize.report import plots
from passportize.report.bars import Bar, bars_of
from passportize.signature.reading import Reading
from passportize.thresholds import ACCEPT_STRENGTH, LINK_LIKENESS, LINK_P_VALUE
from passportize.verification.links import Links
from passportize.verification.verdict import Verdict

__all__ = ["Section", "Strangers", "sections_of"]


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
        picture: Drawn for two widths; None for none.
        bars: Bits of layers, empty for none.
        caption: What the picture shows; it is also read out in its place.
    """

    title: str
    text: str = ""
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    picture: plots.Picture | None = None
    caption: str = ""
    bars: Sequence[Bar] = ()

    @property
    def sources(self) -> tuple[str, str]:
        """The picture as data URIs, wide and narrow."""
        assert self.picture is not None
        return plots.data_uri(self.picture.wide), plots.data_uri(self.picture.narrow)


def sections_of(
    verdict: Verdict, reading: Reading | None, strangers: Strangers | None
) -> list[Section]:
    """The parts of a report on a verdict, in the order of the page; nothing empty.

    Args:
        verdict: What to report.
        reading: Responses of the channels, for a histogram.
        strangers: Other keys on the same model, for comparison.
    """
    sections = []
    if verdict.sites:
        sections.append(
            Section(
                "Bits per layer",
                "Every channel of a protected layer carries one bit. A key that knows nothing of "
                "the weights would match about half of them, where the line is.",
                bars=bars_of(verdict.sites),
                caption=f"{verdict.matched:,} of {verdict.total:,} bits match, layer by layer"
                if verdict.total
                else "None of the layers was found",
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
    if verdict.sites:
        rows = [
            (
                site.name or "(root)",
                site.found_as or "-",
                f"{site.matched} / {site.bits}" if site.bits else "missing",
                site.note,
            )
            for site in verdict.sites
        ]
        header = ("Layer", "Found as", "Bits", "Note")
        sections.append(Section("Every layer", header=header, rows=rows))
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
                "aligned suspect",
                f"{links.aligned_matched} / {links.aligned_total} bits",
                f"{links.aligned_strength:.0f} bits of strength, {ACCEPT_STRENGTH:g} needed, on "
                "entries that were not used to undo the disguise (released weights there: "
                f"{links.entries_matched} bits); {links.moved} of {links.channels} channels had "
                "another place",
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
