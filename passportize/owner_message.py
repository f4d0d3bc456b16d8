"""The owner message: who, how to reach them, since when; laid over signature bits and read back.

Frame: version byte, length byte, payload, first four bytes of a SHA-256 checksum. Its bits are
repeated over all positions of the signature, each block turned by a keyed offset.
"""

from __future__ import annotations

import datetime
import hashlib
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from passportize.derivation import LabelledStream, encode_label
from passportize.errors import InvalidArgument, MessageTooLong

__all__ = ["OwnerMessage", "lay_over", "read_message"]

_VERSION = 1
_OVERHEAD = 6  # version, length, four bytes of checksum
_SHORTEST_PAYLOAD = 5  # three bytes of date, the length of the owner, one byte of owner
_LONGEST_PAYLOAD = 255
_DATE_BYTES = 3
_WEAK = 8  # frame bits that the decoder may turn
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
                raise InvalidArgument(f"{name} must be text, got {type(text).__name__}.")
            if any(c in _BIDI or unicodedata.category(c) in _REFUSED_CATEGORIES for c in text):
                raise InvalidArgument(
                    f"{name} holds a control character or invalid Unicode; use plain text."
                )
        if not self.owner:
            raise InvalidArgument("owner is empty; name who owns the model.")
        _ordinal(self.date)
        size = len(self.payload)
        if size > _LONGEST_PAYLOAD:
            raise MessageTooLong(
                f"The owner message takes {size} bytes, {_LONGEST_PAYLOAD} at most; "
                "shorten owner or contact."
            )

    @classmethod
    def normalized(cls, owner: str, contact: str = "", date: str | None = None) -> OwnerMessage:
        """From what a person typed: stripped, Unicode NFC, today's date (UTC) by default."""
        for name, text in (("owner", owner), ("contact", contact)):
            if not isinstance(text, str):
                raise InvalidArgument(f"{name} must be text, got {type(text).__name__}.")
        if date is None:
            date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
        return cls(
            unicodedata.normalize("NFC", owner.strip()),
            unicodedata.normalize("NFC", contact.strip()),
            date,
        )

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
            raise InvalidArgument("These bytes are not an owner message.")
        return message

    @property
    def frame(self) -> bytes:
        """What is embedded: version, length, payload, checksum."""
        body = bytes([_VERSION, len(self.payload)]) + self.payload
        return body + _checksum(body)

    @property
    def frame_bits(self) -> int:
        """Signature bits that one copy of the message takes."""
        return 8 * (_OVERHEAD + len(self.payload))


def lay_over(message: OwnerMessage, total: int, keyed: LabelledStream) -> torch.Tensor:
    """The codeword: int8 ``[total]`` of 0 and 1.

    Positions are cut into blocks of ``F = message.frame_bits``. Position ``i`` of block ``k``
    carries bit ``(i + offset_k) mod F`` of the frame, with keyed offsets. So any run of ``n``
    positions, a whole layer say, holds each bit ``m`` to ``m + 2`` times for one and the same
    ``m > n / F - 2``: losing the run costs every bit alike. A longer codeword begins with the
    shorter one. With ``total < F`` part of the frame is missing.
    """
    places = _carried(total, message.frame_bits, _offsets(total, keyed))
    return _bits_of(message.frame)[places]


def read_message(key: bytes, read_bits: Any, confidence: Any = None) -> OwnerMessage | None:
    """Reads the owner message with the reading key alone: no owner, contact, date or length known.

    Decoding rule: every read bit is unmasked with the key's pseudo-random bits and votes +1 for
    frame bit 0 or -1 for frame bit 1, times its confidence. For each frame length that fits,
    shortest first, a frame bit is 1 where its votes add up to less than 0, otherwise 0; then all
    256 ways to turn the eight frame bits with the smallest sums (the first of equals) are tried,
    least total sum turned first. The first frame whose version, length, checksum and text are all
    valid is the message. Where confidence is the log-likelihood ratio of a read bit, frames are
    thereby tried in the order of their likelihood; |response| is that up to scale, for Gaussian
    noise on the responses.

    A frame that carries no message passes with probability at most ``2**-48`` (version, length,
    checksum); 256 frames are tried for each of 251 lengths, so false positives are rarer than
    ``2**-32``.

    Args:
        key: The reading key of the passport (:attr:`passportize.Passport.reading_key`).
        read_bits: Tensor or array ``[total]`` of 0 and 1, in the order of embedding.
        confidence: Tensor or array ``[total]`` of weights of at least 0, all 1 by default. 0
            stands for "not read", for a layer that the suspect lacks, say.

    Returns:
        The message, or None where no frame is valid.

    Raises:
        InvalidArgument: Wrong shapes or values.
    """
    votes = _votes(read_bits, confidence)
    keyed, total = LabelledStream(key), len(votes)
    votes = votes * (1 - 2 * keyed.bits("bits", total=total).to(torch.float64))
    offsets = _offsets(total, keyed)
    for size in range(_SHORTEST_PAYLOAD, _LONGEST_PAYLOAD + 1):
        frame_bits = 8 * (_OVERHEAD + size)
        if frame_bits > total:
            break
        sums = torch.bincount(
            _carried(total, frame_bits, offsets), weights=votes, minlength=frame_bits
        )
        for frame in _likely_frames(sums, bytes([_VERSION, size])):
            message = _parse(frame)
            if message is not None:
                return message
    return None


def _likely_frames(sums: torch.Tensor, head: bytes) -> Iterator[bytes]:
    """Frames that begin with ``head``, most likely first, with up to eight weak bits turned."""
    bits = sums < 0
    expected = _bits_of(head).to(torch.bool)
    wrong = (bits[: len(expected)] != expected).nonzero().flatten()
    if len(wrong) > _WEAK:
        return
    weights, weakest = sums.abs().sort(stable=True)
    weights, weakest = weights[:_WEAK], weakest[:_WEAK]
    # All but a handful of the wrong lengths end here.
    if not bool(torch.isin(wrong, weakest).all()):
        return
    patterns = (torch.arange(2**_WEAK).unsqueeze(1) >> torch.arange(_WEAK)) & 1
    frames = bits.repeat(2**_WEAK, 1)
    frames[:, weakest] ^= patterns.to(torch.bool)
    order = (patterns.to(weights.dtype) @ weights).argsort(stable=True)
    order = order[(frames[order, : len(expected)] == expected).all(1)]
    for frame in frames[order]:
        yield bytes((frame.view(-1, 8).to(torch.int64) << torch.arange(8)).sum(1).tolist())


def _bits_of(raw: bytes) -> torch.Tensor:
    """Bits of bytes, lowest first, int8."""
    octets = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    unpacked = (octets.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8)) & 1
    return unpacked.flatten().to(torch.int8)


def _parse(frame: bytes) -> OwnerMessage | None:
    body, checksum = frame[:-4], frame[-4:]
    if body[0] != _VERSION or body[1] != len(body) - 2 or _checksum(body) != checksum:
        return None
    try:
        return OwnerMessage.from_payload(body[2:])
    except InvalidArgument:
        return None


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(encode_label("owner message", body)).digest()[:4]


def _ordinal(date: str) -> int:
    try:
        day = datetime.date.fromisoformat(date)
    except ValueError:
        day = None
    # Python 3.11 also reads 20260131 and 2026-W05-6; one date has one spelling here.
    if day is None or day.isoformat() != date:
        raise InvalidArgument(f"{date!r} is not a date; write it as YYYY-MM-DD.")
    return day.toordinal()


def _offsets(total: int, keyed: LabelledStream) -> torch.Tensor:
    shortest = 8 * (_OVERHEAD + _SHORTEST_PAYLOAD)
    return keyed.words("offsets", count=total // shortest + 1)


def _carried(total: int, frame_bits: int, offsets: torch.Tensor) -> torch.Tensor:
    """Index of the frame bit that each position carries, int64 ``[total]``."""
    position = torch.arange(total)
    block = position.div(frame_bits, rounding_mode="floor")
    return (position % frame_bits + offsets[block]) % frame_bits


def _votes(read_bits: Any, confidence: Any) -> torch.Tensor:
    bits = torch.as_tensor(read_bits).detach().cpu()
    if bits.dim() != 1 or len(bits) == 0:
        raise InvalidArgument(f"read_bits must be [total], got the shape {list(bits.shape)}.")
    if not bool(((bits == 0) | (bits == 1)).all()):
        raise InvalidArgument("read_bits must hold 0 and 1 only.")
    votes = 1 - 2 * bits.to(torch.float64)
    if confidence is None:
        return votes
    weights = torch.as_tensor(confidence).detach().cpu().to(torch.float64)
    if weights.shape != bits.shape:
        raise InvalidArgument(
            f"confidence has the shape {list(weights.shape)}, read_bits {list(bits.shape)}."
        )
    if not bool((torch.isfinite(weights) & (weights >= 0)).all()):
        raise InvalidArgument("confidence must be finite and at least 0.")
    return votes * weights
