"""Claims on disk: safetensors with a versioned header, read strictly."""

from __future__ import annotations

import hmac
import json
import os
from pathlib import Path
from typing import NoReturn

from safetensors import SafetensorError
from safetensors.torch import load, save

from passportize.atomic_file import write_atomically
from passportize.claim import VERSION, Claim
from passportize.claim_check import check_claim
from passportize.claim_header import claim_from
from passportize.errors import ClaimFileError, PassportizeError

__all__ = ["FORMAT", "read_claim", "write_claim"]

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
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
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
    if set(metadata) != _KEYS or not all(isinstance(text, str) for text in metadata.values()):
        _damaged(file, "unexpected entries in its header")
    return dict(metadata)
