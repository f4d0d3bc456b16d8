"""Claims on disk: safetensors with a versioned header, read strictly."""

from __future__ import annotations

import hmac
import json
import os
from pathlib import Path
from typing import NoReturn

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from passportize.errors import ClaimFileError, PassportizeError
from passportize.layers.missing_bits import warn_of_missing_bits
from passportize.layers.model import switch_of
from passportize.release.claim import VERSION, Claim, claim_of
from passportize.release.claim_format import check_claim, claim_from
from passportize.release.preprocessing import Preprocessing
from passportize.utils.files import check_writable, write_atomically

__all__ = ["FORMAT", "check_claimable", "load_claim", "read_claim", "save_claim", "write_claim"]

FORMAT = "passportize claim"
_KEYS = {"format", "version", "header", "digest"}


def write_claim(claim: Claim, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a claim; the file appears complete or not at all.

    Raises:
        ClaimFileError: The file exists or cannot be written.
    """
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "header": claim.header(),
        "digest": claim.digest(),
    }
    data = save(dict(claim.tensors), metadata)
    write_atomically(path, data, overwrite=overwrite, error=ClaimFileError)


def read_claim(path: str | os.PathLike[str]) -> Claim:
    """Read a claim and check it against its digest.

    Raises:
        ClaimFileError: The file is missing, damaged, changed, of another kind or newer.
    """
    file = Path(path)
    try:
        data = file.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ClaimFileError(f"{file}: {reason}; check the path of the claim") from None
    metadata = _metadata(data, file)
    try:
        tensors = load(data)
        claim = claim_from(metadata["header"], tensors)
        check_claim(claim)
        intact = hmac.compare_digest(claim.digest(), metadata["digest"])
    except (
        AttributeError,
        KeyError,
        OverflowError,
        PassportizeError,
        RecursionError,
        SafetensorError,
        TypeError,
        ValueError,
    ) as error:
        _damaged(file, str(error))
    if not intact or claim.header() != metadata["header"]:
        _damaged(file, "its content does not have the digest that it names")
    return claim


def _damaged(file: Path, reason: str) -> NoReturn:
    raise ClaimFileError(
        f"{file}: the claim is damaged or was changed ({reason[:200]}); use another copy"
    )


def _metadata(data: bytes, file: Path) -> dict[str, str]:
    """The text fields at the front of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    try:
        if len(data) < 8 or length > len(data) - 8:
            raise ValueError
        text = data[8 : 8 + length]
        metadata = json.loads(text)["__metadata__"]
        kind, version = metadata["format"], metadata["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ClaimFileError(
            f"{file}: this is no claim, or only a part of one; give the file that save_claim wrote"
        ) from None
    if kind != FORMAT:
        raise ClaimFileError(
            f"{file}: this is a safetensors file, but no claim; give the file that save_claim wrote"
        )
    if version != str(VERSION):
        raise ClaimFileError(
            f"{file}: this version of passportize reads claims of format {VERSION}, not "
            f"{str(version)[:20]!r}; update passportize"
        )
    # safetensors fills up with spaces; JSON would take other white space there as well.
    if not text.rstrip(b" ").endswith(b"}"):
        _damaged(file, "unexpected bytes behind its header")
    if set(metadata) != _KEYS or not all(isinstance(text, str) for text in metadata.values()):
        _damaged(file, "unexpected entries in its header")
    return dict(metadata)


def check_claimable(
    model: nn.Module, path: str | os.PathLike[str], *, overwrite: bool = False
) -> None:
    """Try, before days of training, what :func:`save_claim` will need after them; writes nothing.

    Args:
        model: A passportized model, to be trained.
        path: Where the claim will be written to.
        overwrite: As it will be given then.

    Raises:
        NotPassportized, WrappedModel, BranchLost, ClaimError, CheckpointError: As save_claim would.
        ClaimFileError: The file exists, or none can be written there.
    """
    claim_of(model)
    check_writable(path, overwrite=overwrite, error=ClaimFileError)


def save_claim(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    preprocessing: Preprocessing | None = None,
    overwrite: bool = False,
) -> Claim:
    """Write the claim on a passportized model, before its private branch is taken out.

    The file is safetensors with a JSON header; it holds no secret. It appears complete or not at
    all. Keep it, and publish or timestamp its :meth:`~Claim.digest` before the weights go out.

    Args:
        model: A passportized model, trained.
        path: Where to, ``"acme.claim.safetensors"`` say.
        preprocessing: How pictures are prepared for the model. It is recorded, so that accuracies
            are measured later on pictures that were prepared the same way.
        overwrite: Replace an existing file.

    Raises:
        NotPassportized: The model carries no private branch.
        WrappedModel: It is inside DDP, torch.compile or the like; give the plain model.
        ClaimError: There is nothing sound to save, or the file cannot be written.

    Warns:
        MissingBitsWarning: The weights do not carry the signature. The claim is saved all the same.
    """
    claim = claim_of(model, preprocessing)
    warn_of_missing_bits(model, stacklevel=2)
    write_claim(claim, path, overwrite=overwrite)
    switch_of(model).saved = True
    return claim


def load_claim(path: str | os.PathLike[str]) -> Claim:
    """Read a claim.

    Raises:
        ClaimFileError: The file is missing, damaged, changed, of another kind or newer.
    """
    return read_claim(path)
