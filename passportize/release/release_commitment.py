"""The commitment to a release: passport, claim and weights by their digests, signed by the owner.

One canonical JSON (RFC 8785), to publish or timestamp before the weights go out. What it commits
to is shown later, at the opening. Byte by byte: ``docs/commitment.md``.
"""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

from passportize.errors import (
    BadSignature,
    CommitmentFileError,
    InvalidArgument,
    MissingExtra,
    TimestampRefused,
)
from passportize.passport.passport import Passport
from passportize.passport.signing_key import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, is_signed
from passportize.release import strict_json as strict
from passportize.release.timestamp import check_imprint, timestamp_request
from passportize.utils.files import read_limited, write_atomically

__all__ = ["FORMAT", "VERSION", "ReleaseCommitment", "parse_commitment", "read_commitment"]

FORMAT = "passportize-release-commitment"
VERSION = 1
_DIGESTS = {"claim", "passport", "weights"}
_KEYS = {"format", "version", *_DIGESTS, "date", "public_key", "signature"}
_OPTIONAL = {"timestamp", "weights_file"}
_LARGEST = 256 * 2**10


@dataclass(frozen=True)
class ReleaseCommitment:
    """What an owner publishes of a release. Public: it holds no secret and no name.

    One that exists is signed by the key that it names. Whose key that is, what the digests are
    of, and what the timestamp is worth is shown by
    :func:`passportize.release.opening.open_commitment`.

    Attributes:
        passport: Commitment of the passport, hex.
        claim: Digest of the claim, hex.
        weights: Digest of the released tensors, as in the claim, hex.
        weights_file: SHA-256 of the released file, hex; empty if none was given.
        date: ISO date on which it was made: the owner's word, and nobody else's.
        public_key: Ed25519 public key of the owner, hex.
        signature: Ed25519 signature over :meth:`signed_bytes`, hex.
        timestamp: RFC 3161 response over :meth:`stamped_bytes`, DER; empty as long as there is
            none. It is not checked here.

    Raises:
        BadSignature: The signature is not that of the public key.
        MissingExtra: ``rfc8785`` is not installed.
    """

    passport: str
    claim: str
    weights: str
    weights_file: str
    date: str
    public_key: str
    signature: str
    timestamp: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        """Refuse what the owner of the key has not signed."""
        try:
            key, signature = bytes.fromhex(self.public_key), bytes.fromhex(self.signature)
        except ValueError:
            key = signature = b""
        if not is_signed(key, signature, self.signed_bytes()):
            raise BadSignature(
                f"the release commitment is not signed by the key {self.public_key} that it "
                "names: it was changed, or never signed; ask the owner for another copy"
            )

    @classmethod
    def signed(
        cls,
        passport: Passport,
        claim: str,
        weights: str,
        weights_file: str = "",
        date: str | None = None,
    ) -> ReleaseCommitment:
        """Commit to digests and sign with the passport; ``date`` is today (UTC) by default."""
        day = datetime.now(timezone.utc).date().isoformat() if date is None else date
        if not _is_iso_date(day):
            raise InvalidArgument(f"date must be YYYY-MM-DD, got {day!r}")
        texts: dict[str, Any] = {
            "passport": passport.commitment(),
            "claim": claim,
            "weights": weights,
            "weights_file": weights_file,
            "date": day,
            "public_key": passport.public_key().hex(),
        }
        return cls(**texts, signature=passport.sign(_document(texts)).hex())

    def signed_bytes(self) -> bytes:
        """What the owner signed: the canonical JSON without ``signature`` and ``timestamp``."""
        return _document({**self._texts(), "signature": "", "timestamp": ""})

    def stamped_bytes(self) -> bytes:
        """What an authority timestamps: the canonical JSON without ``timestamp``."""
        return _document({**self._texts(), "timestamp": ""})

    def to_bytes(self) -> bytes:
        """The file: the canonical JSON of all of it. Without a timestamp, what is to be stamped."""
        return _document(self._texts())

    def _texts(self) -> dict[str, str]:
        return {**vars(self), "timestamp": base64.b64encode(self.timestamp).decode()}

    def timestamp_request(self) -> bytes:
        """An RFC 3161 request for :meth:`stamped_bytes`, DER; to send with any tool."""
        return timestamp_request(self.stamped_bytes())

    def with_timestamp(self, response: bytes) -> ReleaseCommitment:
        """The same with a timestamp, which must be for this very commitment.

        Args:
            response: The RFC 3161 response of an authority, DER. Whether the authority is to be
                trusted is not checked.

        Raises:
            TimestampRefused: There is one already, or this one is refused, malformed or for other
                data.
        """
        if self.timestamp:
            raise TimestampRefused(
                "the release commitment bears a timestamp already; keep the earlier one"
            )
        check_imprint(response, self.stamped_bytes())
        return replace(self, timestamp=response)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the file, complete or not at all.

        Raises:
            CommitmentFileError: The file exists or cannot be written.
        """
        write_atomically(path, self.to_bytes(), overwrite=overwrite, error=CommitmentFileError)


def read_commitment(path: str | os.PathLike[str]) -> ReleaseCommitment:
    """Read a release commitment; see :func:`parse_commitment`.

    Raises:
        CommitmentFileError: Missing, damaged, not canonical, of another kind or newer.
        BadSignature: It is not signed by the key that it names.
    """
    return parse_commitment(
        read_limited(path, _LARGEST, error=CommitmentFileError), str(Path(path))
    )


def parse_commitment(data: bytes, name: str) -> ReleaseCommitment:
    """Read the bytes of a release commitment strictly: every byte must be as it was written.

    Args:
        data: The file.
        name: Its path, for messages.
    """
    try:
        record = strict.typed(strict.parse(data.decode()), dict)
        kind, version = record.get("format"), record.get("version")
        strict.require(kind == FORMAT, f"its format is not {FORMAT!r}")
    except ValueError as error:
        raise CommitmentFileError(
            f"{name}: this is no release commitment ({str(error)[:200]}); give the file that "
            "passportize commit wrote"
        ) from None
    if type(version) is int and version > VERSION:
        raise CommitmentFileError(
            f"{name}: release commitment of version {str(version)[:20]}, this passportize reads "
            f"up to {VERSION}; upgrade passportize"
        )
    try:
        strict.record(record, _KEYS | (_OPTIONAL & set(record)))
        strict.require(type(version) is int and version == VERSION, "its version is unknown")
        for key in _DIGESTS | ({"weights_file"} & set(record)):
            strict.digest(record[key])
        strict.hex_bytes(record["public_key"], PUBLIC_KEY_BYTES)
        strict.hex_bytes(record["signature"], SIGNATURE_BYTES)
        strict.require(_is_iso_date(strict.text(record["date"])), "its date is none")
        timestamp = strict.base64_bytes(record.get("timestamp", ""))
        strict.require(bool(timestamp) == ("timestamp" in record), "its timestamp is empty")
        strict.require(_canonical(record) == data, "it is not canonical JSON (RFC 8785)")
    except ValueError as error:
        raise CommitmentFileError(
            f"{name}: the release commitment is damaged or was changed ({str(error)[:200]}); use "
            "another copy"
        ) from None
    texts = {key: text for key, text in record.items() if key not in ("format", "version")}
    return ReleaseCommitment(**{"weights_file": "", **texts, "timestamp": timestamp})


def _document(texts: dict[str, str]) -> bytes:
    """Format, version and the entries that there are."""
    return _canonical(
        {"format": FORMAT, "version": VERSION, **{key: text for key, text in texts.items() if text}}
    )


def _canonical(record: dict[str, Any]) -> bytes:
    try:
        import rfc8785
    except ImportError:
        raise MissingExtra(
            "a release commitment is canonical JSON, which rfc8785 writes; run pip install "
            "'passportize[timestamp]'"
        ) from None
    return rfc8785.dumps(record)


def _is_iso_date(text: object) -> bool:
    try:
        return isinstance(text, str) and date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False
