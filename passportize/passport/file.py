"""The passport file: JSON with mode 0600, as it is or sealed with a passphrase."""

from __future__ import annotations

import base64
import binascii
import json
import os
import stat
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from passportize.errors import InvalidArgument, MessageTooLong, PassportFileError, WrongPassphrase
from passportize.passport.commitment import commit, commitment_salt, same_commitment
from passportize.passport.derivation import KEY_BYTES
from passportize.passport.images import PassportImages
from passportize.passport.message import OwnerMessage
from passportize.passport.sealing import SEALED_FORMAT, seal, unseal
from passportize.utils.files import write_atomically

__all__ = ["PASSPHRASE", "PASSPORT_FORMAT", "PassportRecord", "read_passport", "write_passport"]

PASSPHRASE = "PASSPORTIZE_PASSPHRASE"
"""Environment variable with the passphrase of a sealed passport, for programs; nothing here reads
it."""

PASSPORT_FORMAT = "passportize-passport"
_VERSION = 1
_FIELDS = {"format", "version", "owner", "contact", "date", "secret", "images", "commitment"}
_LARGEST = 256 * 2**20


@dataclass(frozen=True)
class PassportRecord:
    """What a passport file holds. Secret and images stay out of the repr."""

    secret: bytes = field(repr=False)
    message: OwnerMessage
    images: PassportImages | None = field(default=None, repr=False)

    def commitment(self) -> str:
        """The commitment of the passport; in the file it serves as a checksum."""
        digest = self.images.digest() if self.images is not None else b""
        return commit(self.secret, commitment_salt(self.secret), self.message, digest)


def write_passport(
    path: str | os.PathLike[str],
    record: PassportRecord,
    passphrase: str | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Write the file with mode 0600, complete or not at all.

    Raises:
        PassportFileError: The file exists or cannot be written.
        InvalidArgument: An empty passphrase.
    """
    images = record.images
    content = {
        "format": PASSPORT_FORMAT,
        "version": _VERSION,
        "owner": record.message.owner,
        "contact": record.message.contact,
        "date": record.message.date,
        "secret": record.secret.hex(),
        "images": None if images is None else base64.b64encode(images.to_bytes()).decode(),
        "commitment": record.commitment(),
    }
    data = json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n"
    if passphrase is not None:
        data = seal(data, passphrase)
    write_atomically(path, data, 0o600, overwrite=overwrite, error=PassportFileError)


def read_passport(path: str | os.PathLike[str], passphrase: str | None = None) -> PassportRecord:
    """Read what :func:`write_passport` wrote; messages never quote the content.

    Raises:
        PassportFileError: Missing, unreadable, damaged, of another kind or newer version.
        WrongPassphrase: The passphrase does not open it, or it is sealed and none was given.
    """
    name = str(path)
    data = _read(Path(path))
    content = _parse(data, name)
    if content.get("format") == SEALED_FORMAT:
        if passphrase is None:
            raise WrongPassphrase(f"{name} is sealed; give its passphrase")
        content = _parse(unseal(data, passphrase, name), name)
    elif passphrase is not None:
        warnings.warn(
            f"{name} is not sealed: the passphrase was not needed, and whoever gets the file has "
            "the passport. Save it again with a passphrase.",
            UserWarning,
            stacklevel=4,
        )
    return _record(content, name)


def _read(path: Path) -> bytes:
    try:
        status = path.stat()
        # A pipe or a device would block or never end.
        if not stat.S_ISREG(status.st_mode):
            raise PassportFileError(f"{path} is not a file; give the path of a passport file")
        if status.st_size > _LARGEST:
            raise PassportFileError(f"{path} is too large for a passport file; check the path")
        data = path.read_bytes()
    except FileNotFoundError:
        raise PassportFileError(
            f"there is no file {path}; check the path, or make a passport with "
            "Passport.generate(...).save(path)"
        ) from None
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or "the path is not valid"
        raise PassportFileError(f"Cannot read {path}: {reason}; check path and owner") from None
    if os.name == "posix" and status.st_mode & 0o077:
        warnings.warn(
            f"{path} can be read by other users of this machine; run: chmod 600 {path}",
            UserWarning,
            stacklevel=5,
        )
    return data


def _parse(data: bytes, name: str) -> dict[str, Any]:
    try:
        content = json.loads(data.decode())
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        state = "is empty" if not data.strip() else "is not a passport file, or is damaged"
        raise PassportFileError(f"{name} {state}; check the path or restore a backup")
    return content


def _record(content: dict[str, Any], name: str) -> PassportRecord:
    version = content.get("version")
    if content.get("format") != PASSPORT_FORMAT:
        raise PassportFileError(f"{name} is not a passport file; check the path")
    if type(version) is int and version > _VERSION:
        raise PassportFileError(
            f"{name} has the version {version}, this passportize reads up to {_VERSION}; "
            "upgrade passportize"
        )
    # JSON's true equals 1 in Python, hence the type.
    if set(content) != _FIELDS or type(version) is not int or version != _VERSION:
        odd = ", ".join(sorted(_FIELDS ^ set(content)))[:200] or "version"
        raise PassportFileError(f"{name} is damaged: missing or unknown {odd}; restore a backup")
    damaged = PassportFileError(
        f"{name} is damaged: its content does not fit its commitment; restore a backup."
    )
    try:
        secret = bytes.fromhex(content["secret"])
        message = OwnerMessage(content["owner"], content["contact"], content["date"])
        images = None
        if content["images"] is not None:
            raw = base64.b64decode(content["images"], validate=True)
            images = PassportImages.from_bytes(raw)
        record = PassportRecord(secret, message, images)
        right = len(secret) == KEY_BYTES and same_commitment(
            content["commitment"], record.commitment()
        )
    except (InvalidArgument, MessageTooLong, TypeError, ValueError, binascii.Error):
        right = False
    if not right:
        raise damaged
    return record
