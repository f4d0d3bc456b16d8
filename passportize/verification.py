"""Verification: does a suspect carry the signature of a passport, and how sure is that?"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from passportize.binding import anchor_shapes
from passportize.claim import Claim, load_claim
from passportize.config import PassportConfig
from passportize.errors import DegenerateSite, InvalidArgument, NoNormalization, WrongPassport
from passportize.fidelity import Fidelity, PrivateBranch, measure_fidelity, place_sites
from passportize.layout import Layout, anchor_of
from passportize.matching import BY_NAME, BY_ORDER, TensorMatch, match_tensors
from passportize.model_key import ModelKey
from passportize.norms import find_norms
from passportize.null_model import log2_binomial_tail
from passportize.passport import Passport
from passportize.planning import plan
from passportize.signature import Reading, prepare_sites, read_signature
from passportize.site import Role, Site
from passportize.suspect import Suspect, open_suspect
from passportize.thresholds import ACCEPT_STRENGTH
from passportize.verdict import SiteVerdict, Verdict
from passportize.weights_digest import structure_of, weights_digest

__all__ = ["verify"]

Structure = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True)
class _Claimed:
    """What is claimed about the suspect, by a claim or by the plan of the suspect itself."""

    sites: tuple[Site, ...]
    configs: tuple[PassportConfig, ...]
    config: PassportConfig
    layout: Layout
    structure: Structure
    tensors: tuple[Mapping[str, Tensor], ...]

    def match(self, tensors: Mapping[str, Tensor], names: bool) -> TensorMatch:
        """What stands for the claimed tensors among these."""
        decisive = {part.weight for site in self.layout.sites for part in anchor_of(site).parts}
        return match_tensors(self.structure, structure_of(tensors), names=names, decisive=decisive)


@dataclass(frozen=True)
class _Evidence:
    """One reading of the signature and what it weighs."""

    reading: Reading
    log2_p: float
    log2_alternatives: float
    matched_by: str
    names: bool

    @property
    def strength(self) -> float:
        return max(0.0, -self.log2_p - self.log2_alternatives)


def verify(
    suspect: nn.Module | Mapping[str, Tensor] | str | os.PathLike[str],
    passport: Passport,
    claim: Claim | str | os.PathLike[str] | None = None,
    loader: Iterable[Any] | None = None,
    *,
    model: nn.Module | None = None,
    config: PassportConfig | None = None,
    example_inputs: Any = None,
    device: torch.device | str | None = None,
) -> Verdict:
    """Test whether a suspect carries the signature of a passport.

    The signature is read from the weights alone. Under the null hypothesis, that the passport was
    drawn without knowledge of the weights, every bit matches with probability exactly 1/2, so the
    p-value is that of a binomial and exact. Fidelity, the accuracy of the private branch next to
    the public one, is a second piece of evidence; it is reported beside the first and never mixed
    with it. Its weight rests on the claim's digest having been published before the release,
    because private statistics (and the bottleneck of ``paper``) come from the claim.

    Nothing that a claimant could fit to the suspect enters the signature: vectors and bits come
    from the secret together with all that decides where bits lie, so a claim that is written to
    suit a suspect has other bits. Where tensors are matched by order and shape the strength is
    reduced by the number of ways in which they could have been.

    Args:
        suspect: A plain model, a state dict, or the path of a file of weights. It is left exactly
            as it was.
        passport: The owner's passport.
        claim: The claim or its path. Without one the sites are those that :func:`plan` finds in
            the suspect, which must be those that were protected, all of them.
        loader: Data for fidelity: yields ``(inputs, targets)``, see
            :func:`passportize.fidelity.measure_fidelity`.
        model: For a state dict or file, a plain model of the architecture; needed for fidelity,
            and where there is no claim. It is left as it was.
        config: The formulation, where there is no claim; ``keyed`` by default.
        example_inputs: For :func:`plan`, where there is no claim.
        device: Where to run a copy of the suspect for fidelity; None to run it where it is.

    Raises:
        InvalidArgument: An argument makes no sense.
        WrongPassport: The claim was made with another passport.
        AlreadyPassportized: The suspect carries private branches.
        WrappedModel: The suspect is inside DDP, torch.compile or the like.
        ClaimFileError: The claim cannot be read.
        CheckpointError: The weights cannot be read or do not fit ``model``.
    """
    if not isinstance(passport, Passport):
        raise InvalidArgument(
            f"verify: expected a Passport, got {type(passport).__name__}; load one with "
            "Passport.load(path)"
        )
    claim = _claim(claim, passport, config)
    opened = open_suspect(suspect, model)
    if claim is not None:
        claimed = _from_claim(claim)
    else:
        try:
            claimed = _from_plan(opened, config, example_inputs)
        except (NoNormalization, DegenerateSite) as error:
            nothing = Fidelity(None, None, None, "there is no private branch")
            return _verdict(None, str(error), None, None, nothing, None, opened.notes)
    evidence = _read(opened.tensors, passport, claimed)
    accepted, reason = _judge(evidence, claimed.layout)
    fidelity = _fidelity(opened, passport, claimed, evidence, loader, device)
    same = None
    if claim is not None:
        same = weights_digest(opened.tensors) == claim.weights
    message = None
    if evidence.reading.total:
        key = ModelKey(passport, claimed.layout)
        message = key.read_message(evidence.reading.bits, evidence.reading.confidence)
    if accepted and fidelity.passed is False:
        reason += (
            "; the private branch fails its test of accuracy, which the signature does not depend "
            "on: the suspect was changed, or the data are not those it was made for"
        )
    notes = [*opened.notes, *_notes(passport, claim, evidence)]
    return _verdict(accepted, reason, evidence, message, fidelity, (claim, same), notes)


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


def _from_claim(claim: Claim) -> _Claimed:
    return _Claimed(
        claim.sites,
        claim.configs,
        claim.config,
        claim.layout,
        claim.structure,
        tuple(claim.of_site(index) for index in range(len(claim.sites))),
    )


def _from_plan(opened: Suspect, config: PassportConfig | None, example_inputs: Any) -> _Claimed:
    model = opened.module
    if model is None:
        raise InvalidArgument(
            "verify: weights alone do not say where bits lie; give the claim, or a plain model of "
            "the architecture as model="
        )
    if config is None:
        # A model without norms can carry bits, but no private branch.
        config = PassportConfig.keyed() if find_norms(model) else PassportConfig.signature()
    planned = plan(model, config=config, example_inputs=example_inputs, include_frozen=True)
    sites = tuple(site for site in planned.sites if site.role in (Role.BOUND, Role.STATISTICS))
    configs = (config,) * len(sites)
    layout = Layout.of(sites, configs, anchor_shapes(model, sites))
    structure = structure_of(model.state_dict())
    return _Claimed(sites, configs, config, layout, structure, ({},) * len(sites))


def _read(tensors: Mapping[str, Tensor], passport: Passport, claimed: _Claimed) -> _Evidence:
    """The stronger of the readings by name and, if that fails, by order and shape."""
    key = ModelKey(passport, claimed.layout)

    def weigh(names: bool, cost: float) -> _Evidence:
        match = claimed.match(tensors, names)
        reading = read_signature(key, claimed.layout, prepare_sites(claimed.layout, tensors, match))
        used = [name for site in reading.sites for name in site.prepared.tensors]
        return _Evidence(
            reading,
            log2_binomial_tail(reading.matched, reading.total),
            match.log2_alternatives(used) + cost,
            BY_NAME if match.by_name(used) else BY_ORDER,
            names,
        )

    first = weigh(names=True, cost=0.0)
    if first.strength >= ACCEPT_STRENGTH:
        return first
    # The names may be those of other layers (a Sequential counted anew). One bit for the second
    # look.
    second = weigh(names=False, cost=1.0)
    return second if second.strength > first.strength else first


def _judge(evidence: _Evidence, layout: Layout) -> tuple[bool | None, str]:
    total, matched = evidence.reading.total, evidence.reading.matched
    if not layout.bits:
        return None, "no norm of the suspect can carry a signature"
    if not total:
        return None, "no site of the claim is in the suspect; is it a model of this architecture?"
    if total - evidence.log2_alternatives < ACCEPT_STRENGTH:
        return None, (
            f"{total} of {layout.bits} bits are there to be read, too few to reach "
            f"{ACCEPT_STRENGTH:g} bits of strength even if all match"
        )
    if evidence.strength >= ACCEPT_STRENGTH:
        return True, f"the weights carry the signature ({matched} of {total} bits)"
    return False, f"the weights do not carry the signature ({matched} of {total} bits)"


def _fidelity(
    opened: Suspect,
    passport: Passport,
    claimed: _Claimed,
    evidence: _Evidence,
    loader: Iterable[Any] | None,
    device: torch.device | str | None,
) -> Fidelity:
    if loader is None:
        return Fidelity(None, None, None, "no data were given (loader=)")
    if opened.module is None:
        return Fidelity(None, None, None, "weights alone cannot be run; give model= too")
    if not opened.whole:
        return Fidelity(None, None, None, "the suspect lacks weights of model=")
    private = _private_branch(opened.module, claimed, names=evidence.names)
    return measure_fidelity(opened.module, passport, private, loader, device)


def _private_branch(model: nn.Module, claimed: _Claimed, names: bool) -> PrivateBranch | str:
    if not claimed.config.has_private_pass:
        return "the 'signature' preset has no private branch"
    # The module may be a copy of model=, with other names than the suspect's file.
    match = claimed.match(model.state_dict(), names)
    placed = place_sites(claimed.sites, claimed.structure, match, model)
    if isinstance(placed, str):
        return placed
    return PrivateBranch(placed, claimed.configs, claimed.config, claimed.layout, claimed.tensors)


def _notes(passport: Passport, claim: Claim | None, evidence: _Evidence) -> list[str]:
    notes = []
    missing = [site for site in evidence.reading.sites if not site.total]
    if missing:
        notes.append(
            f"{len(missing)} of {len(evidence.reading.sites)} sites are missing and not counted"
        )
    if evidence.matched_by != BY_NAME:
        notes.append("layers have other names than in the claim; matched by order and shape")
    if claim is None:
        notes.append(
            "without a claim the sites are those that plan() finds in the suspect; they must be "
            "all those that were protected"
        )
    if passport.claimant_chosen:
        notes.append("the passport vectors come from pictures that the claimant chose")
    return notes


def _verdict(
    accepted: bool | None,
    reason: str,
    evidence: _Evidence | None,
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
    )
