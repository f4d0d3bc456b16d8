"""Whose copy a suspect is, or was mixed from."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from passportize.alignment.alignment import align
from passportize.errors import InvalidArgument
from passportize.passport.licensee import licensee_name
from passportize.passport.passport import Passport
from passportize.release.claim import Claim
from passportize.release.claim_file import load_claim
from passportize.release.inputs_file import Inputs, read_inputs
from passportize.release.licensed_copy import licence_code
from passportize.signature.evidence import read_evidence
from passportize.signature.formulations import NORMALISED
from passportize.signature.licence_code import FULL, LicenceCode
from passportize.signature.model_key import ModelKey
from passportize.signature.null_model import probability_text
from passportize.signature.reading import rows_of
from passportize.signature.response import reach_of
from passportize.thresholds import ACCEPT_STRENGTH, FITTED_WAYS, NAME_STRENGTH
from passportize.verification.laid_beside import lay_beside
from passportize.verification.refitted import refit_suspect, refit_tensors
from passportize.verification.released import architecture_of, models_given, open_released
from passportize.verification.suspect import Suspect, Weights, open_suspect

__all__ = ["Identification", "LicenseeEvidence", "identify"]


@dataclass(frozen=True)
class LicenseeEvidence:
    """What a suspect says about one licensee.

    Attributes:
        name: The licensee.
        log2_p: ``log2`` of the exact probability that somebody whose copy was not used fits as
            well.
        strength: ``-log2_p`` less the number of licensees that were asked about, in bits.
        named: Whether that is enough to name them.
    """

    name: str
    log2_p: float
    strength: float
    named: bool


@dataclass(frozen=True)
class Identification:
    """Result of :func:`identify`; ``print`` shows it.

    Attributes:
        licensees: Evidence on each, the strongest first.
        bits: Rows that tell copies apart and could be read.
        of_bits: All of them.
        compared: Whether the suspect was compared with the owner's original.
        notes: What the reader should know.
    """

    licensees: tuple[LicenseeEvidence, ...]
    bits: int
    of_bits: int
    compared: bool
    notes: tuple[str, ...] = ()

    @property
    def named(self) -> tuple[str, ...]:
        """Who is named, the strongest evidence first; empty where nobody is."""
        return tuple(each.name for each in self.licensees if each.named)

    @property
    def asked(self) -> int:
        """About how many licensees was asked; that is paid for."""
        return len(self.licensees)

    def to_dict(self) -> dict[str, Any]:
        """JSON-compatible form."""
        return {
            "named": list(self.named),
            "asked": self.asked,
            "bits": self.bits,
            "of_bits": self.of_bits,
            "compared": self.compared,
            "licensees": [
                {
                    "name": each.name,
                    "log2_p": each.log2_p,
                    "strength": each.strength,
                    "named": each.named,
                }
                for each in self.licensees
            ],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        lines = [
            f"{'NAMED' if each.named else '     '}  {each.name}: strength {each.strength:.1f}, "
            f"{NAME_STRENGTH:g} needed (p = {probability_text(each.log2_p)}, {self.asked} asked)"
            for each in self.licensees[:10]
        ]
        if self.asked > 10:
            lines.append(f"       and {self.asked - 10} with less")
        lines.append(f"{self.bits} of {self.of_bits} bits were read")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


@torch.no_grad()
def identify(
    suspect: Weights,
    passport: Passport,
    licensees: Iterable[str],
    claim: Claim | str | os.PathLike[str],
    *,
    released: Weights | None = None,
    inputs: Inputs | None = None,
    model: nn.Module | None = None,
    example_inputs: Any = None,
) -> Identification:
    """Say whose copy a suspect is, of copies that :func:`passportize.mark_copy` marked.

    Licensees who mixed their copies are named as well, at least one of them, up to a number that
    grows with the bits: 2 with 500, 3 with 1,500, 5 with 5,000, and mostly more
    (``docs/marking.md``). The chance that somebody uninvolved is named is at most ``2^-20`` for
    all that were asked about together. Who asks has the passport, and could have marked a copy in
    anybody's name: this tells an owner who leaked, and is no proof against the owner's word.

    Args:
        suspect: A plain model, a state dict, or the path of a file of weights.
        passport: The owner's passport.
        licensees: Names of all who got a copy, innocent or not.
        claim: The claim on the release, or its path.
        released: The release that the copies were made from, before they were marked: the suspect
            is then compared with it, which tells more of mixed copies, and aligned with it where
            its channels were disguised.
        inputs: The owner's inputs, as in :func:`passportize.verify`: where the owner's bits read
            better from the suspect's layers fitted anew to what they compute on these, the
            licensees' are read from them too.
        model: As in :func:`passportize.verify`; needed to align, and for ``inputs``.
        example_inputs: As in :func:`passportize.plan`, to align.

    Raises:
        InvalidArgument: An argument makes no sense, nobody was asked about, or the claim leaves no
            rows for licensees.
        WrongPassport: The claim was made with another passport.
        CheckpointError, ClaimFileError, DatasetError: A file cannot be read.
    """
    if not isinstance(passport, Passport):
        raise InvalidArgument(
            f"identify: expected a Passport, got {type(passport).__name__}; load one with "
            "Passport.load(path)"
        )
    if isinstance(licensees, str) or not isinstance(licensees, Iterable):
        raise InvalidArgument("identify: licensees must be the names of all who got a copy")
    names = list(dict.fromkeys(licensee_name(name) for name in licensees))
    if not names:
        raise InvalidArgument("identify: no licensee to ask about")
    claim = load_claim(claim) if isinstance(claim, (str, os.PathLike)) else claim
    code = licence_code(passport, claim, "identify")
    model, other = models_given(suspect, model, released)
    opened = open_suspect(suspect, model, example_inputs)
    original, architecture = None, None
    if released is not None:
        original = open_released(released, claim)
        architecture = architecture_of(released, original, other)
    notes = list(opened.notes)
    if inputs is not None:
        batches = read_inputs(inputs, claim.layout.inputs, "identify")
        opened, original = _fitted(opened, passport, claim, original, architecture, batches, notes)
    found, tensors = _found(opened, passport, claim, original, architecture, example_inputs, notes)
    said = _said(tensors, found, claim, code, original)
    sums = [code.score(name, said) for name in names]
    evidence = [
        LicenseeEvidence(name, log2_p, strength, strength >= NAME_STRENGTH)
        for name, log2_p in zip(names, code.log2_p(sums, said), strict=True)
        for strength in [max(0.0, -log2_p - math.log2(len(names)))]
    ]
    evidence.sort(key=lambda each: (-each.strength, each.log2_p))
    bits = int((said != 0).sum())
    return Identification(tuple(evidence), bits, code.length, original is not None, tuple(notes))


def _fitted(
    opened: Suspect,
    passport: Passport,
    claim: Claim,
    original: dict[str, Tensor] | None,
    architecture: nn.Module | None,
    batches: Sequence[Any],
    notes: list[str],
) -> tuple[Suspect, dict[str, Tensor] | None]:
    """Suspect and original with their layers fitted anew, where the owner's bits read better so.

    Nothing here depends on the bits of any licensee.
    """
    key = ModelKey(passport, claim.layout)
    strength = read_evidence(opened.tensors, key, claim.layout).strength
    best, way = opened, None
    for penalty in FITTED_WAYS:
        fitted = refit_suspect(opened, batches, penalty)
        if isinstance(fitted, str):
            notes.append(f"inputs= were not used: {fitted}")
            return opened, original
        anew = read_evidence(fitted.tensors, key, claim.layout).strength
        if anew > strength:
            best, way, strength = fitted, penalty, anew
    if way is None:
        return opened, original
    notes.append("read from the suspect's layers fitted anew to the owner's inputs")
    module = architecture or opened.module
    if original is not None and module is not None:
        original = refit_tensors(original, module, batches, way)
    return best, original


def _found(
    opened: Suspect,
    passport: Passport,
    claim: Claim,
    original: Mapping[str, Tensor] | None,
    architecture: nn.Module | None,
    example_inputs: Any,
    notes: list[str],
) -> tuple[Mapping[str, str], Mapping[str, Tensor]]:
    """The suspect's name for the weights of the claim, and its tensors, aligned if need be.

    Nothing here depends on the bits of any licensee.
    """
    key = ModelKey(passport, claim.layout)
    evidence = read_evidence(opened.tensors, key, claim.layout)
    if evidence.strength >= ACCEPT_STRENGTH:
        return evidence.found, opened.tensors
    module = opened.module if opened.whole else None
    module = module if opened.other_width is None else opened.other_width
    if original is None or module is None:
        notes.append(
            "the owner's bits do not read plainly; a disguised suspect is aligned where released= "
            "and a model are given"
        )
        return evidence.found, opened.tensors
    beside = lay_beside(
        module, original, example_inputs, folded=opened.folded, architecture=architecture
    )
    if isinstance(beside, str):
        notes.append(f"not aligned: {beside}")
        return evidence.found, opened.tensors
    aligned = align(beside.released, beside.suspect, beside.tied, present=beside.present).tensors
    notes.append("the suspect was aligned with the release")
    return read_evidence(aligned, key, claim.layout).found, aligned


def _said(
    tensors: Mapping[str, Tensor],
    found: Mapping[str, str],
    claim: Claim,
    code: LicenceCode,
    original: Mapping[str, Tensor] | None,
) -> Tensor:
    """What the suspect says at each position, from a 1 (:data:`FULL`) to a 0, int64 ``[length]``.

    Without the original, the sign of the response. With it, where the response lies between those
    that a 0 and a 1 would have given: copies that were averaged lie in between.
    """
    said = torch.zeros(code.length, dtype=torch.int64, device="cpu")
    layout = claim.layout
    shapes = layout.weights
    for each in code.rows:
        name = found.get(each.part.weight)
        if name is None or tuple(tensors[name].shape) != shapes[each.part.weight]:
            continue
        answer, finite = _answer(tensors[name], each.part, each.vectors)
        if original is None:
            value = torch.where(answer >= 0, FULL, -FULL)
        else:
            before, known = _answer(original[each.part.weight], each.part, each.vectors)
            reach = reach_of(claim.config.margin, each.vectors.entries)
            one, zero = before.clamp(min=reach), before.clamp(max=-reach)
            share = (2 * answer - one - zero) / (one - zero)
            value = (FULL * share.clamp(-1, 1)).nan_to_num().round().long()
            finite &= known
        said[each.places] = torch.where(finite, value.long(), 0)
    return said


def _answer(tensor: Tensor, part: Any, vectors: Any) -> tuple[Tensor, Tensor]:
    """Responses of rows to ``t``, with the sign of the gauge, and which rows hold numbers."""
    responses = NORMALISED.respond([rows_of(tensor, part)], [vectors])
    finite = torch.isfinite(responses.gamma) & (responses.length != 0)
    return responses.gamma.double(), finite
