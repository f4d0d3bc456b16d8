"""Sealing bytes with a passphrase: scrypt (RFC 7914) and ChaCha20-Poly1305 (RFC 8439).

A sealed file is one line of JSON whose every byte is checked: a changed, missing or added byte
never gives other content, only an error.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import unicodedata
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from passportize.errors import InvalidArgument, PassportFileError, WrongPassphrase

__all__ = ["SEALED_FORMAT", "ScryptCost", "seal", "unseal"]

SEALED_FORMAT = "passportize-sealed"
_VERSION = 1
_HEADER = ("format", "version", "cipher", "kdf", "n", "r", "p", "salt", "nonce")
_CIPHER = "chacha20-poly1305"
_SALT_BYTES = 16
_NONCE_BYTES = 12
_LARGEST_MEMORY = 512 * 2**20
_LARGEST_WORK = 2**22  # n * p: at most some ten seconds


@dataclass(frozen=True)
class ScryptCost:
    """Cost of one guess at the passphrase: ``128 * n * r`` bytes of memory, ``p`` times.

    The default takes 128 MiB and less than a second.

    Raises:
        InvalidArgument: Not a power of two, or more than 512 MiB: a file must not be able to
            exhaust the machine that opens it.
    """

    n: int = 2**17
    r: int = 8
    p: int = 1

    def __post_init__(self) -> None:
        whole = all(type(value) is int and value >= 1 for value in (self.n, self.r, self.p))
        if not whole or self.n < 2 or self.n & (self.n - 1):
            raise InvalidArgument("scrypt needs n, a power of two, and r and p of at least 1")
        if 128 * self.n * self.r > _LARGEST_MEMORY or self.n * self.r * self.p > 8 * _LARGEST_WORK:
            raise InvalidArgument(
                f"scrypt with n={self.n}, r={self.r}, p={self.p} takes too much memory or time; "
                "128 * n * r may be 512 MiB at most"
            )


def seal(content: bytes, passphrase: str, cost: ScryptCost | None = None) -> bytes:
    """Encrypts and authenticates ``content``; every call draws a fresh salt and nonce.

    Raises:
        InvalidArgument: The passphrase is empty or not valid Unicode.
    """
    cost = cost or ScryptCost()
    salt, nonce = os.urandom(_SALT_BYTES), os.urandom(_NONCE_BYTES)
    values = (SEALED_FORMAT, _VERSION, _CIPHER, "scrypt", cost.n, cost.r, cost.p)
    header = dict(zip(_HEADER, (*values, salt.hex(), nonce.hex()), strict=True))
    cipher = ChaCha20Poly1305(_stretch(passphrase, salt, cost))
    ciphertext = cipher.encrypt(nonce, content, _canonical(header))
    record = {**header, "ciphertext": base64.b64encode(ciphertext).decode()}
    return _canonical({**record, "sha256": _checksum(record)})


def unseal(data: bytes, passphrase: str, name: str) -> bytes:
    """Inverse of :func:`seal`.

    Args:
        data: The file; white space after its end is forgiven.
        passphrase: As given to :func:`seal`; Unicode spellings of one text count as equal.
        name: Path for messages.

    Raises:
        PassportFileError: Damaged, of a newer version, or asking for too much memory.
        WrongPassphrase: The file is whole but the passphrase does not open it.
        InvalidArgument: The passphrase is empty or not valid Unicode.
    """
    damaged = PassportFileError(f"{name} is damaged; restore it from a backup.")
    data = data.rstrip(b" \t\r\n")
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        raise damaged from None
    if not isinstance(record, dict) or record.get("format") != SEALED_FORMAT:
        raise damaged
    version = record.get("version")
    if type(version) is int and version > _VERSION:
        raise PassportFileError(
            f"{name} has the version {version}, this passportize reads up to {_VERSION}; "
            "upgrade passportize"
        )
    try:
        whole = _canonical(record) == data
    except (ValueError, RecursionError):
        whole = False
    if not whole or set(record) != {*_HEADER, "ciphertext", "sha256"}:
        raise damaged
    if type(version) is not int or version != _VERSION:
        raise damaged
    checksum = record.pop("sha256")
    ciphertext = _bytes(record.pop("ciphertext"), "base64")
    salt, nonce = _bytes(record["salt"], "hex"), _bytes(record["nonce"], "hex")
    if ciphertext is None or salt is None or nonce is None or not isinstance(checksum, str):
        raise damaged
    if len(salt) != _SALT_BYTES or len(nonce) != _NONCE_BYTES:
        raise damaged
    body = {**record, "ciphertext": base64.b64encode(ciphertext).decode()}
    if not hmac.compare_digest(checksum.encode(), _checksum(body).encode()):
        raise damaged
    if record["cipher"] != _CIPHER or record["kdf"] != "scrypt":
        raise PassportFileError(f"{name} is sealed in a way that is not known here")
    try:
        cost = ScryptCost(record["n"], record["r"], record["p"])
    except InvalidArgument as problem:
        raise PassportFileError(f"{name} is not a file of ours: {problem}") from None
    try:
        cipher = ChaCha20Poly1305(_stretch(passphrase, salt, cost))
        return cipher.decrypt(nonce, ciphertext, _canonical(record))
    except InvalidTag:
        raise WrongPassphrase(f"the passphrase does not open {name}; try another one") from None


def _canonical(record: dict[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _checksum(record: dict[str, Any]) -> str:
    """Tell damage from a wrong passphrase; against forgery there is the tag."""
    return hashlib.sha256(_canonical(record)).hexdigest()


def _bytes(text: object, encoding: str) -> bytes | None:
    """Strict decoding: one spelling per value, else None."""
    if not isinstance(text, str):
        return None
    try:
        if encoding == "hex":
            raw = bytes.fromhex(text)
            return raw if raw.hex() == text else None
        raw = base64.b64decode(text, validate=True)
        return raw if base64.b64encode(raw).decode() == text else None
    except (ValueError, binascii.Error):
        return None


def _stretch(passphrase: str, salt: bytes, cost: ScryptCost) -> bytes:
    if not isinstance(passphrase, str) or not passphrase:
        raise InvalidArgument("the passphrase must be text and not empty; pass None to not seal")
    try:
        # One key for one text, however keyboard and system compose their accents.
        raw = unicodedata.normalize("NFC", passphrase).encode()
    except UnicodeEncodeError:
        raise InvalidArgument("the passphrase is not valid Unicode") from None
    return Scrypt(salt, 32, cost.n, cost.r, cost.p).derive(raw)
