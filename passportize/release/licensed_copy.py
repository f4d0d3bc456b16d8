"""A copy of a release for one licensee, with bits of its own."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from passportize.config import OUTPUT_SHARE
from passportize.errors import ClaimMismatch, EmbeddingFailed, InvalidArgument, WrongPassport
from passportize.layers.model import is_passportized
from passportize.layers.wrappers import refuse_wrapped
from passportize.passport.licensee import Licensee
from passportize.passport.passport import Passport
from passportize.release.checkpoint import host_state_dict
from passportize.release.claim import Claim
from passportize.release.weights_digest import weights_digest
from passportize.signature.layout import anchor_of
from passportize.signature.licence_code import LicenceCode
from passportize.training.calibration import turn_by_output
from passportize.training.marked_rows import (
    MarkedRows,
    MarkedWeight,
    companions,
    turn_by_weights,
)
from passportize.utils.progress import Progress

__all__ = ["LicensedCopy", "licence_code", "mark_copy"]

_ROUNDS = 50


@dataclass(frozen=True)
class LicensedCopy:
    """What :func:`mark_copy` did.

    Attributes:
        licensee: Whose copy it is.
        bits: Rows that tell it from other copies.
        change: Length of what was added over the length of what was there, over all weights that
            carry such rows.
        weights: SHA-256 of the copy, as for a claim.
    """

    licensee: str
    bits: int
    change: float
    weights: str

    def __str__(self) -> str:
        return (
            f"copy of {self.licensee}: {self.bits} bits, weights changed by {self.change:.1%}, "
            f"sha256 {self.weights}"
        )


@torch.no_grad()
def mark_copy(
    model: nn.Module,
    licensee: Licensee,
    claim: Claim,
    *,
    calibration: Iterable[Any] | None = None,
    output_share: float = OUTPUT_SHARE,
    progress: Progress | None = None,
) -> LicensedCopy:
    """Mark a copy of the released model for one licensee, in place and without training.

    The bits lie beside the owner's, in rows that these left over; the owner's stay. All copies
    carry theirs in the same rows. :func:`passportize.identify` says whose copy was leaked, also
    where several licensees mixed theirs.

    >>> import copy
    >>> import passportize as pp
    >>> model = nn.Sequential(nn.Linear(80, 400), nn.LayerNorm(400))
    >>> passport, inputs = pp.Passport.generate("Acme"), torch.randn(64, 80)
    >>> config = pp.PassportConfig.trained(bits=100)
    >>> model = pp.passportize(model, passport, config=config, example_inputs=inputs)
    >>> done = pp.embed_signature(model, calibration=[inputs])
    >>> from passportize.release.claim import claim_of
    >>> claim, model = claim_of(model), pp.unpassportize(model)
    >>> copied = copy.deepcopy(model)
    >>> mark_copy(copied, passport.licensee("Beta GmbH"), claim, calibration=[inputs]).bits
    300
    >>> pp.identify(copied, passport, ["Beta GmbH", "Gamma Ltd"], claim).named
    ('Beta GmbH',)

    Args:
        model: A plain copy of what was released (``copy.deepcopy``).
        licensee: Who gets it.
        claim: The claim on the release.
        calibration: Batches of inputs, as for :func:`passportize.embed_signature`; without them
            the rows change least instead of what the layers compute.
        output_share: As for :func:`passportize.embed_signature`.
        progress: Likewise.

    Raises:
        InvalidArgument: An argument makes no sense, or no rows are left for licensees.
        WrongPassport: The claim was made with another passport.
        ClaimMismatch: The model is not what the claim was made for.
        EmbeddingFailed: Not all bits could be put in. The model is then as before.
    """
    if not isinstance(model, nn.Module) or is_passportized(model):
        raise InvalidArgument("mark_copy: model must be a plain copy of what was released")
    if not isinstance(licensee, Licensee):
        raise InvalidArgument(
            "mark_copy: the licensee comes from passport.licensee(name), not "
            f"{type(licensee).__name__}"
        )
    if not 0 < output_share < 1:
        raise InvalidArgument(f"mark_copy: output_share={output_share!r} must lie in (0, 1)")
    refuse_wrapped(model)
    code = licence_code(licensee.passport, claim, "mark_copy")
    if weights_digest(host_state_dict(model)) != claim.weights:
        raise ClaimMismatch(
            "mark_copy: the model is not what the claim was made for, its digest differs; give a "
            "copy of the very weights that were released"
        )
    weights = _marked(model, licensee, claim, code)
    tensors = [*(weight.values for weight in weights.values()), *companions(weights)]
    kept = [tensor.clone() for tensor in tensors]
    try:
        if calibration is not None:
            turn_by_output(weights, model, calibration, output_share, progress)
        for _ in range(_ROUNDS):
            if not turn_by_weights(weights):
                break
        else:
            raise EmbeddingFailed("mark_copy: rows that norms share cannot all keep their bits")
    except BaseException:
        for tensor, values in zip(tensors, kept, strict=True):
            tensor.copy_(values)
        raise
    changed = zip(tensors[: len(weights)], kept[: len(weights)], strict=True)
    added, length = 0.0, 0.0
    for now, before in changed:
        added += float((now.double() - before.double()).square().sum())
        length += float(before.double().square().sum())
    return LicensedCopy(
        licensee.name,
        code.length,
        math.sqrt(added / length) if length else 0.0,
        weights_digest(host_state_dict(model)),
    )


def licence_code(passport: Passport, claim: Claim, verb: str) -> LicenceCode:
    """Where the copies of a release carry bits.

    Raises:
        InvalidArgument: The claim is none, or no rows are left for licensees.
        WrongPassport: The claim was made with another passport.
    """
    if not isinstance(claim, Claim):
        raise InvalidArgument(f"{verb}: claim must be a Claim, not {type(claim).__name__}")
    if not passport.check_commitment(claim.commitment):
        raise WrongPassport(
            f"{verb}: the claim was made with another passport; load the one that belongs to it"
        )
    config = claim.config
    code = LicenceCode(passport, claim.layout, config.licence_bits, config.shortest_row)
    if not code.length:
        raise InvalidArgument(
            f"{verb}: the claim leaves no rows for licensees; mark the model with "
            "PassportConfig.trained(), or with signature(bits=..., licence_bits=...) and fewer "
            "bits than it has rows"
        )
    return code


def _marked(
    model: nn.Module, licensee: Licensee, claim: Claim, code: LicenceCode
) -> dict[str, MarkedWeight]:
    """The rows of a copy that tell it from others, by weight."""
    word = code.word(licensee.name).double() * 2 - 1
    weights: dict[str, MarkedWeight] = {}
    for each in code.rows:
        site = claim.layout.sites[each.site]
        path, _, attribute = each.part.weight.rpartition(".")
        weight = weights.setdefault(
            each.part.weight, MarkedWeight(model.get_submodule(path), attribute)
        )
        try:
            norm = model.get_submodule(site.name)
        except AttributeError:
            # A function call is not a module, and has no running statistics.
            norm = nn.Identity()
        anchor = anchor_of(site)
        before = anchor.parts[: anchor.parts.index(each.part)]
        channel = sum(part.channels for part in before)
        weight.rows.append(
            MarkedRows(
                each.part,
                each.vectors,
                word[each.places],
                claim.config.margin,
                norm,
                anchor,
                channel,
            )
        )
    _check(weights)
    return weights


def _check(weights: dict[str, MarkedWeight]) -> None:
    for name, weight in weights.items():
        values: Tensor = weight.values
        if values.is_meta or hasattr(values, "device_mesh"):
            raise EmbeddingFailed(f"mark_copy: {name} has no values of its own here")
