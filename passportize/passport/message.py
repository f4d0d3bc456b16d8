"""The owner message: who, how to reach them, since when; as text and as bytes.

Payload: the canonical bytes. Frame, which is what a model carries: version byte, length byte,
payload, first four bytes of a SHA-256 checksum.
"""

from __future__ import annotations

import datetime
import hashlib
import unicodedata
from dataclasses import dataclass

from passportize.errors import InvalidArgument, MessageTooLong
from passportize.passport.derivation import encode_label

__all__ = ["FRAME_OVERHEAD", "FRAME_VERSION", "LONGEST_PAYLOAD", "SHORTEST_PAYLOAD", "OwnerMessage"]

FRAME_VERSION = 1
FRAME_OVERHEAD = 6  # version, length, four bytes of checksum
SHORTEST_PAYLOAD = 5  # three bytes of date, the length of the owner, one byte of owner
LONGEST_PAYLOAD = 255
_DATE_BYTES = 3
_REFUSED_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})
# Characters that reorder text: a report could show another name than the one embedded.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True)
class OwnerMessage:
    """What an owner embeds. Text is taken as it is; :meth:`normalized` cleans what people type.

    Attributes:
        owner: Name of the owner; not empty.
        contact: How to reach the owner; may be empty.
        date: ISO date, ``YYYY-MM-DD``.

    Raises:
        InvalidArgument: Empty owner, control characters, invalid Unicode or no ISO date.
        MessageTooLong: More than 255 bytes in all.
    """

    owner: str
    contact: str
    date: str

    def __post_init__(self) -> None:
        for name, text in (("owner", self.owner), ("contact", self.contact), ("date", self.date)):
            if not isinstance(text, str):
                raise InvalidArgument(f"{name} must be text, got {type(text).__name__}")
            if any(c in _BIDI or unicodedata.category(c) in _REFUSED_CATEGORIES for c in text):
                raise InvalidArgument(
                    f"{name} holds a control character or invalid Unicode; use plain text"
                )
        if not self.owner:
            raise InvalidArgument("owner is empty; name who owns the model")
        _ordinal(self.date)
        size = len(self.payload)
        if size > LONGEST_PAYLOAD:
            raise MessageTooLong(
                f"the owner message takes {size} bytes, {LONGEST_PAYLOAD} at most; "
                "shorten owner or contact"
            )

    @classmethod
    def normalized(cls, owner: str, contact: str = "", date: str | None = None) -> OwnerMessage:
        """From what a person typed: stripped, Unicode NFC, today's date (UTC) by default."""
        for name, text in (("owner", owner), ("contact", contact)):
            if not isinstance(text, str):
                raise InvalidArgument(f"{name} must be text, got {type(text).__name__}")
        if date is None:
            date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
        return cls(
            unicodedata.normalize("NFC", owner.strip()),
            unicodedata.normalize("NFC", contact.strip()),
            date,
        )

    @property
    def text(self) -> str:
        """Owner, contact and date on one line, without what is empty."""
        return ", ".join(part for part in (self.owner, self.contact, self.date) if part)

    @property
    def payload(self) -> bytes:
        """Canonical bytes: days since 0000-12-31 (3, big-endian), owner length (1), both texts."""
        owner, contact = self.owner.encode(), self.contact.encode()
        head = _ordinal(self.date).to_bytes(_DATE_BYTES, "big") + bytes([min(len(owner), 255)])
        return head + owner + contact

    @classmethod
    def from_payload(cls, payload: bytes) -> OwnerMessage:
        """Inverse of :attr:`payload`.

        Raises:
            InvalidArgument: The bytes are not the payload of any message.
        """
        try:
            day = datetime.date.fromordinal(int.from_bytes(payload[:_DATE_BYTES], "big"))
            end = _DATE_BYTES + 1 + payload[_DATE_BYTES]
            owner, contact = payload[_DATE_BYTES + 1 : end].decode(), payload[end:].decode()
            message = cls(owner, contact, day.isoformat())
        except (ValueError, IndexError, OverflowError, MessageTooLong):
            message = None
        if message is None or message.payload != payload:
            raise InvalidArgument("These bytes are not an owner message")
        return message

    @classmethod
    def from_frame(cls, frame: bytes) -> OwnerMessage:
        """Inverse of :attr:`frame`.

        Raises:
            InvalidArgument: Version, length, checksum or payload is wrong.
        """
        body, checksum = frame[:-4], frame[-4:]
        whole = len(body) >= 2 and body[0] == FRAME_VERSION and body[1] == len(body) - 2
        if not whole or _checksum(body) != checksum:
            raise InvalidArgument("These bytes are not the frame of an owner message")
        return cls.from_payload(body[2:])

    @property
    def frame(self) -> bytes:
        """What is embedded: version, length, payload, checksum."""
        body = bytes([FRAME_VERSION, len(self.payload)]) + self.payload
        return body + _checksum(body)

    @property
    def frame_bits(self) -> int:
        """Signature bits that one copy of the message takes."""
        return 8 * (FRAME_OVERHEAD + len(self.payload))


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(encode_label("owner message", body)).digest()[:4]


def _ordinal(date: str) -> int:
    try:
        day = datetime.date.fromisoformat(date)
    except ValueError:
        day = None
    # Python 3.11 also reads 20260131 and 2026-W05-6; one date has one spelling here.
    if day is None or day.isoformat() != date:
        raise InvalidArgument(f"{date!r} is not a date; write it as YYYY-MM-DD")
    return day.toordinal()
