"""Verification: does a suspect carry the signature of a passport, and how sure is that?"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from passportize.config import PassportConfig
from passportize.errors import DegenerateSite, InvalidArgument, NoNormalization, WrongPassport
from passportize.passport.passport import Passport
from passportize.release.claim import Claim
from passportize.release.claim_file import load_claim
from passportize.release.inputs_file import Inputs, read_inputs
from passportize.release.weights_digest import weights_digest
from passportize.signature.evidence import Evidence
from passportize.signature.matching import BY_NAME
from passportize.signature.model_key import ModelKey
from passportize.suspects.reading import Opened
from passportize.utils.all_or_nothing import process_as_before
from passportize.utils.progress import Progress
from passportize.verification.expectation import Expectation
from passportize.verification.fidelity import Fidelity, measure_fidelity
from passportize.verification.judged import Released, judge, judge_fitted
from passportize.verification.released import (
    architecture_of,
    models_given,
    open_released,
    open_weights,
)
from passportize.verification.suspect import Suspect, Weights, open_suspect
from passportize.verification.verdict import SiteVerdict, Verdict

__all__ = ["verify"]


@process_as_before
def verify(
    suspect: nn.Module | Mapping[str, Tensor] | Opened | str | os.PathLike[str],
    passport: Passport,
    claim: Claim | str | os.PathLike[str] | None = None,
    loader: Iterable[Any] | None = None,
    *,
    model: nn.Module | None = None,
    released: Weights | None = None,
    base: Weights | None = None,
    inputs: Inputs | None = None,
    config: PassportConfig | None = None,
    example_inputs: Any = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> Verdict:
    """Test whether a suspect carries the signature of a passport.

    The signature is read from the weights alone. Under the null hypothesis, that the passport was
    drawn without knowledge of the weights, every bit matches with probability exactly 1/2, so the
    p-value is that of a binomial and exact. Fidelity, the accuracy of the private branch next to
    the public one, is a second piece of evidence; it is reported beside the first and never mixed
    with it. Private running statistics are measured on ``loader`` with the passport given, so with
    ``keyed`` nothing in the branch is left to a claimant; the bottleneck of ``paper`` is.

    Nothing that a claimant could fit to the suspect enters the signature: vectors and bits come
    from the secret together with all that decides where bits lie, so a claim that is written to
    suit a suspect has other bits. Where names say nothing, each weight is read from every tensor
    of its shape, and the strength is reduced by the number of assignments.

    Args:
        suspect: A plain model, a state dict, or the path of a file or folder of weights of any
            kind that :func:`passportize.suspects.read_suspect` knows, or what that function gave.
            It is left exactly as it was, and nothing in a file is executed.
        passport: The owner's passport.
        claim: The claim or its path. Without one the sites are those that :func:`plan` finds in
            the suspect, which must be those that were protected, all of them.
        loader: Data for fidelity: yields ``(inputs, targets)``, see
            :func:`passportize.verification.fidelity.measure_fidelity`.
        model: For a state dict or file, a plain model of the architecture; needed for fidelity,
            and where there is no claim. Beside a live suspect it is a plain model of the released
            architecture, for a ``released`` that is none. It is left as it was.
        released: The weights that were released: a plain model, a state dict or a file, the very
            ones that the claim names. If the signature does not read plainly, the suspect is
            aligned with them, which undoes permuted, rescaled and mirrored channels and takes out
            those that were added, and judged by two links
            (:mod:`passportize.verification.links`). A state dict or file then needs ``model``, in
            the suspect's or in the released width. A suspect with more or fewer layers is put into
            the released ones where this is a live model, or ``model`` is one beside a live suspect.
        base: A public model that suspect and released weights may both come from, for
            ``released``: it is taken out of both before their likeness is measured. Taking one
            out can only clear a suspect.
        inputs: The owner's inputs, batches or the file that :func:`passportize.save_inputs` wrote:
            the very ones whose digest the config names. If the signature does not read, it is read
            once more from the suspect with its layers fitted anew to what they compute on these,
            which takes out noise in directions that the network does not use. A state dict or file
            then needs ``model``, of which the code is trusted.
        config: The formulation, where there is no claim; ``keyed`` by default.
        example_inputs: As in :func:`plan`, where there is no claim, and for ``released``.
        device: Where to run a copy of the suspect for fidelity; None to run it where it is.
        progress: With ``released`` and ``inputs``: called while a disguise is undone or layers are
            fitted, with the number of steps done and of all steps.

    Raises:
        InvalidArgument: An argument makes no sense.
        WrongPassport: The claim was made with another passport.
        AlreadyPassportized: The suspect carries private branches.
        WrappedModel: The suspect is inside DDP, torch.compile or the like.
        ClaimFileError: The claim cannot be read.
        CheckpointError: The weights cannot be read or do not fit ``model``.
        DatasetError: The file of the inputs cannot be read.
        MissingExtra: A file is of a kind that is read by a package that is not installed.
    """
    if not isinstance(passport, Passport):
        raise InvalidArgument(
            f"verify: expected a Passport, got {type(passport).__name__}; load one with "
            "Passport.load(path)"
        )
    claim = _claim(claim, passport, config)
    model, other = models_given(suspect, model, released)
    opened = open_suspect(suspect, model, example_inputs)
    if claim is not None:
        claimed = Expectation.from_claim(claim)
    else:
        try:
            claimed = Expectation.from_plan(opened.module or model, config, example_inputs)
        except (NoNormalization, DegenerateSite) as error:
            nothing = Fidelity(None, None, None, "there is no private branch")
            return _verdict(None, str(error), None, None, nothing, None, opened.notes)
    if base is not None and released is None:
        raise InvalidArgument("verify: base= goes with released=; alone it decides nothing")
    batches = None if inputs is None else read_inputs(inputs, claimed.layout.inputs, "verify")
    key = ModelKey(passport, claimed.layout)
    beside = None
    if released is not None:
        weights = open_released(released, claim)
        ancestor = None if base is None else open_weights(base, "verify: base=")
        architecture = functools.cache(functools.partial(architecture_of, released, weights, other))
        beside = Released(weights, example_inputs, ancestor, architecture)
    found = judge(opened, key, claimed, beside, progress)
    if batches is not None and not found.accepted:
        found = judge_fitted(found, opened, batches, key, claimed, beside, progress)
    evidence, accepted, reason, links = found.evidence, found.accepted, found.reason, found.links
    fidelity = _fidelity(opened, passport, claimed, evidence, loader, device)
    same = None
    if claim is not None:
        same = weights_digest(opened.kept) == claim.weights
    message = None
    if evidence.reading.total:
        message = key.read_message(evidence.reading.bits, evidence.reading.confidence)
    if links is not None and links.accepted and fidelity.passed is False:
        why = "in a disguised suspect the private branch finds no place"
        fidelity = replace(fidelity, passed=None, reason=why)
    if accepted and fidelity.passed is False:
        reason += (
            "; the private branch fails its test of accuracy, which the signature does not depend "
            "on: the suspect was changed, or the data are not those it was made for"
        )
    notes = [*opened.notes, *found.notes, *_notes(passport, claim, evidence)]
    verdict = _verdict(accepted, reason, evidence, message, fidelity, (claim, same), notes)
    return replace(verdict, links=links, fitted=found.fitted)


def _claim(
    claim: Claim | str | os.PathLike[str] | None,
    passport: Passport,
    config: PassportConfig | None,
) -> Claim | None:
    if claim is None:
        return None
    if isinstance(claim, (str, os.PathLike)):
        claim = load_claim(claim)
    if not isinstance(claim, Claim):
        raise InvalidArgument(
            f"verify: claim must be a Claim or the path of one, not {type(claim).__name__}"
        )
    if config is not None:
        raise InvalidArgument("verify: config= goes without a claim; the claim has its own")
    if not passport.check_commitment(claim.commitment):
        raise WrongPassport(
            f"verify: the claim was made with another passport (commitment "
            f"{claim.commitment[:12]}..., this one is {passport.commitment()[:12]}...); load the "
            "passport that belongs to it"
        )
    return claim


def _fidelity(
    opened: Suspect,
    passport: Passport,
    claimed: Expectation,
    evidence: Evidence,
    loader: Iterable[Any] | None,
    device: torch.device | str | None,
) -> Fidelity:
    if loader is None:
        return Fidelity(None, None, None, "no data were given (loader=)")
    if opened.module is None:
        return Fidelity(None, None, None, opened.no_module)
    if not opened.whole:
        return Fidelity(None, None, None, "the suspect lacks weights of model=")
    # The module may be a copy of model=, with other names than the suspect's file.
    named = opened.named
    found = {weight: named.get(name, name) for weight, name in evidence.found.items()}
    private = claimed.place(opened.module, found)
    return measure_fidelity(opened.module, passport, private, loader, device)


def _notes(passport: Passport, claim: Claim | None, evidence: Evidence) -> list[str]:
    notes = []
    missing = [site for site in evidence.reading.sites if not site.total]
    if missing:
        notes.append(
            f"{len(missing)} of {len(evidence.reading.sites)} sites are missing and not counted"
        )
    if evidence.matched_by != BY_NAME:
        notes.append(
            "tensors have other names than in the claim; each weight was looked for among all of "
            "its shape, and the number of ways to do so is paid for"
        )
    if claim is None:
        notes.append(
            "without a claim the sites are those that plan() finds in the suspect; they must be "
            "all those that were protected"
        )
    if claim is not None and claim.config.has_bottleneck:
        notes.append("the bottleneck of 'paper' comes from the claim: the claimant chose it")
    if passport.claimant_chosen:
        notes.append("the passport vectors come from pictures that the claimant chose")
    return notes


def _verdict(
    accepted: bool | None,
    reason: str,
    evidence: Evidence | None,
    message: Any,
    fidelity: Fidelity,
    compared: tuple[Claim | None, bool | None] | None,
    notes: list[str],
) -> Verdict:
    claim, same = compared or (None, None)
    sites = evidence.reading.sites if evidence is not None else ()
    return Verdict(
        accepted=accepted,
        reason=reason,
        matched=evidence.reading.matched if evidence is not None else 0,
        total=evidence.reading.total if evidence is not None else 0,
        log2_p=evidence.log2_p if evidence is not None else 0.0,
        log2_alternatives=evidence.log2_alternatives if evidence is not None else 0.0,
        strength=evidence.strength if evidence is not None else 0.0,
        sites=tuple(
            SiteVerdict(
                site.prepared.site.name,
                site.prepared.found_as,
                site.matched,
                site.total,
                site.prepared.note,
            )
            for site in sites
        ),
        matched_by=evidence.matched_by if evidence is not None else BY_NAME,
        message=message,
        public_accuracy=fidelity.public,
        private_accuracy=fidelity.private,
        fidelity=fidelity.passed,
        fidelity_reason=fidelity.reason,
        same_weights=same,
        claim=claim.digest() if claim is not None else "",
        notes=tuple(notes),
        samples=fidelity.samples,
    )
