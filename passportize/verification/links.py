"""Proof through the released weights, for a suspect whose channels were disguised.

Two links, each with its own null hypothesis, never one number that mixes them:

1. key -> released weights: the signature test as always, exact. The claim names the digest of these
   weights, so they are as old as the claim's published digest.
2. released weights -> suspect: the suspect is aligned with them, and the entries that the alignment
   did not look at are tested: whether they are alike (:mod:`passportize.alignment.similarity`), and
   whether they carry the signature.

Likeness without the bits makes two models kin: nothing says which was first, or that either is a
copy, for both may come from one ancestor. A public ancestor can be given; it is taken out of both
before they are compared.

Why the bits of other entries: the alignment prefers channels that resemble the released ones, and
these know the key, so entries that it has looked at match more often than by chance in any model.
The vectors of other entries are independent signs, and a suspect that owes nothing to the released
weights answers to them by chance, however its channels were placed. This is exact only as far as
the released entries that were looked at say nothing of the vectors of the others. They were trained
together, so it is argued and measured (docs/method.md), and link 1 and likeness are asked as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from passportize.alignment.alignment import align
from passportize.alignment.similarity import Similarity, measure_similarity
from passportize.errors import InvalidArgument
from passportize.signature.evidence import Evidence, judge_evidence, read_by_name, read_evidence
from passportize.signature.matching import match_names
from passportize.signature.model_key import ModelKey
from passportize.thresholds import ACCEPT_STRENGTH, LINK_LIKENESS, LINK_P_VALUE
from passportize.utils.progress import Progress
from passportize.verification.counterparts import find_counterparts, structure_of
from passportize.verification.expectation import Expectation
from passportize.verification.laid_beside import LaidBeside, lay_beside
from passportize.verification.merged_branches import merged_like
from passportize.verification.suspect import NO_MODULE, Suspect

__all__ = ["Links", "judge_links"]


_MERGED = "branches beside each other are one layer in the suspect, so they were merged likewise"


@dataclass(frozen=True)
class Links:
    """What the released weights say about a suspect that does not read plainly.

    Attributes:
        accepted: Whether both links hold; None if one of them could not be judged.
        reason: Why, in words.
        released_matched: Signature bits of the released weights that match.
        released_total: Signature bits that were read from them.
        released_strength: Bits of evidence for the first link, exact.
        similarity: Likeness, the first half of the second link; None if it could not be measured.
        moved: Channels of the suspect that had another place.
        channels: Channels that could have had one.
        aligned_matched: Bits of the aligned suspect that match, read from entries that the
            alignment did not look at.
        aligned_total: Bits that were read from it.
        aligned_strength: Bits of evidence for the second half of the second link.
        entries_matched: Bits of the released weights that match, read from the same entries: what
            a perfect copy would show.
        base: Whether a public ancestor was taken out before likeness was measured.
        narrowed: What was done to a suspect of another size; empty where it has the released one.
    """

    accepted: bool | None
    reason: str
    released_matched: int
    released_total: int
    released_strength: float
    similarity: Similarity | None = None
    moved: int = 0
    channels: int = 0
    aligned_matched: int = 0
    aligned_total: int = 0
    aligned_strength: float = 0.0
    entries_matched: int = 0
    base: bool = False
    narrowed: str = ""

    @property
    def kin(self) -> bool:
        """Whether the weights are alike, though nothing says which of them was first."""
        return self.similarity is not None and bool(self.similarity.accepted)

    def lines(self) -> list[str]:
        """The links as lines of a verdict."""
        lines = [
            f"link 1:    key -> released weights: {self.released_matched} of "
            f"{self.released_total} bits, strength {self.released_strength:.1f}, "
            f"{ACCEPT_STRENGTH:g} needed"
        ]
        if self.narrowed:
            lines.append(f"sizes:     {self.narrowed}")
        found = self.similarity
        if found is not None:
            beyond = " beyond the base" if self.base else ""
            lines += [
                f"link 2:    released weights -> suspect: likeness{beyond} {found.likeness:.3f} "
                f"over {found.rows} rows, {LINK_LIKENESS:g} needed; p = {found.p_value:.2g} "
                f"against {found.matchings} random matchings, {LINK_P_VALUE:g} needed",
                f"aligned:   {self.moved} of {self.channels} channels had another place; on other "
                f"entries {self.aligned_matched} of {self.aligned_total} bits match (released "
                f"weights there: {self.entries_matched}), strength {self.aligned_strength:.1f}, "
                f"{ACCEPT_STRENGTH:g} needed",
            ]
        return lines


def judge_links(
    released: Mapping[str, Tensor],
    opened: Suspect,
    key: ModelKey,
    claimed: Expectation,
    example_inputs: Any = None,
    base: Mapping[str, Tensor] | None = None,
    architecture: nn.Module | None = None,
    progress: Progress | None = None,
) -> Links:
    """Both links from a key to a suspect.

    Args:
        released: From :func:`~passportize.verification.released.open_released`.
        opened: The suspect, with a module.
        key: The claimant's key for the layout.
        claimed: What the claim expects.
        example_inputs: As in :func:`passportize.plan`.
        base: Tensors of a public ancestor, named and ordered as the released ones.
        architecture: The released model, live, where it was given so.
        progress: As in :func:`passportize.alignment.alignment.align`.

    Raises:
        InvalidArgument: There is no model to follow channels in, or ``base`` is another model.
    """
    if opened.module is None and opened.no_module == NO_MODULE:
        raise InvalidArgument(
            "verify: released= needs model=, a plain model of the suspect's architecture, to "
            "follow its channels"
        )
    evidence = read_evidence(released, key, claimed.layout)
    first, reason = judge_evidence(evidence, claimed.layout)
    if first is not True:
        return _links(first, f"link 1: in the released weights, {reason}", evidence)
    module = opened.module if opened.other_width is None else opened.other_width
    if module is None:
        return _links(None, f"link 2: {opened.no_module}", evidence)
    if not opened.whole and opened.other_width is None:
        return _links(None, "link 2: the suspect lacks weights of model=", evidence)
    carrying = set(match_names(claimed.layout, released).values())
    folded, shapes = opened.folded, {name: tensor.shape for name, tensor in released.items()}
    merged = merged_like(architecture, module) if architecture is not None else None
    if merged is not None:
        architecture, released, folded = merged.module, merged.tensors, {}
        carrying = merged.carrying(carrying)
    beside = lay_beside(module, released, example_inputs, carrying, folded, architecture)
    if isinstance(beside, str):
        return _links(None, f"link 2: {beside}", evidence)
    names, own, tied, held_out = beside.names, beside.released, beside.tied, beside.held_out
    ancestor = _ancestor(base, names, own) if base is not None else None
    bound = {name for name, partner in names.items() if partner in carrying}
    alignment = align(own, beside.suspect, tied, held_out, beside.present, progress)
    absent = alignment.absent
    similarity = measure_similarity(
        own, alignment.tensors, tied, base=ancestor, held_out=held_out, absent=absent
    )
    read = {name: partner for name, partner in names.items() if held_out.readable(name)}
    unread = {
        read[name]: held_out.fitted(name) | absent.get(name, torch.zeros((), dtype=torch.bool))
        for name in bound
        if name in read
    }
    there = {partner: alignment.tensors[name] for name, partner in read.items()}
    same = {partner: released[partner] for partner in read.values() if partner in released}
    partly = beside.widened is not None
    if merged is not None:
        there, same, unread = (merged.by_branch(part, shapes) for part in (there, same, unread))
    aligned = read_by_name(there, key, claimed.layout, unread, partly)
    undisguised = read_by_name(same, key, claimed.layout, unread, partly)
    second, reason = _second_link(similarity, aligned, ancestor is not None)
    return replace(
        _links(second, reason, evidence),
        similarity=similarity,
        narrowed="; ".join(filter(None, (_MERGED if merged is not None else "", _told(beside)))),
        moved=alignment.moved,
        channels=alignment.channels,
        aligned_matched=aligned.reading.matched,
        aligned_total=aligned.reading.total,
        aligned_strength=aligned.strength,
        entries_matched=undisguised.reading.matched,
        base=ancestor is not None,
    )


def _ancestor(
    base: Mapping[str, Tensor], names: Mapping[str, str], released: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors of the ancestor, by the suspect's names; those of another shape left out."""
    shapes = {names[name]: tuple(tensor.shape) for name, tensor in released.items()}
    wanted = tuple(shapes.items())
    found = find_counterparts(wanted, structure_of(base))
    ancestor = {
        name: base[partner].detach().cpu().float()
        for name, kept in names.items()
        if (partner := found[kept]) and tuple(base[partner].shape) == shapes[kept]
    }
    if len(ancestor) < len(names) / 2:
        raise InvalidArgument(
            f"verify: base= has only {len(ancestor)} of the {len(names)} tensors of the released "
            "weights; give the public model that both may come from, in its own layout"
        )
    return ancestor


def _second_link(
    similarity: Similarity, aligned: Evidence, beyond: bool
) -> tuple[bool | None, str]:
    """Whether the suspect is a copy, and why.

    Likeness alone does not say so: two honest fine-tunings of one public base are alike as well,
    and only a copy has the owner's bits.
    """
    reading = aligned.reading
    if similarity.accepted is None:
        return None, "link 2: no rows of this model are long enough to be compared"
    if not similarity.accepted:
        where = "beyond the base, " if beyond else ""
        return False, f"link 2: {where}the suspect's weights are not those that were released"
    if not aligned.suffices:
        return None, (
            f"link 2: only {reading.total} bits are there to be read, too few to tell a copy from "
            "kin"
        )
    if aligned.strength < ACCEPT_STRENGTH:
        return False, (
            "link 2: kin, direction unknown: the weights are alike, but the suspect, aligned, does "
            f"not carry the signature ({reading.matched} of {reading.total} bits); both may come "
            "from one ancestor"
        )
    return True, (
        "the released weights carry the signature, and the suspect has these weights in disguise"
    )


def _told(beside: LaidBeside) -> str:
    """What was done to a suspect of another size than the released model, in words."""
    said = []
    if beside.left_out:
        said.append(
            f"{', '.join(beside.left_out)} of the suspect have another size and were not compared"
        )
    if beside.refitted is not None:
        said.append(beside.refitted.told)
        if beside.refitted.unread:
            unread = ", ".join(beside.refitted.unread)
            said.append(f"of {unread} only products are known, so they were not read")
    if beside.resized:
        said.append(
            "heads of attention, or groups of convolutions, have another width or number than was "
            "released, of which the leading part was compared"
        )
    if beside.widened is not None:
        said.append(
            f"the suspect has {beside.widened.missing} channels fewer than were released, of "
            f"{sum(group.size for group in beside.tied.groups)}; rows and entries of these were "
            "not read"
        )
        if beside.widened.copies:
            said.append(
                f"{beside.widened.copies} of its channels copied others or were read by nothing, "
                "and were taken out"
            )
    narrowed = beside.narrowed
    if narrowed is None:
        return "; ".join(said)
    text = (
        f"the suspect has {narrowed.merged + narrowed.dropped} channels more than was released: "
        f"{narrowed.merged} were merged with their like, {narrowed.dropped} left out"
    )
    if narrowed.chosen:
        text += f"; which, the released weights had to say for {narrowed.chosen}"
    return "; ".join([*said, text])


def _links(accepted: bool | None, reason: str, evidence: Evidence) -> Links:
    reading = evidence.reading
    return Links(accepted, reason, reading.matched, reading.total, evidence.strength)
