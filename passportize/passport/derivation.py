"""Labelled derivation: one key in, bytes, bits, signs and uniform numbers out.

Each label gets its own HKDF-SHA256 output (RFC 5869), which seeds SHAKE-256 (FIPS 202) as an
extendable output: the same bytes on every machine, in every dtype and library version, and a
longer request begins with the shorter one. Byte-level description: ``docs/passport_format.md``.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from passportize.errors import InvalidArgument

__all__ = ["KEY_BYTES", "LabelledStream", "bits_of", "derive_key", "encode_label", "unpacked"]

KEY_BYTES = 32
_SALT = b"passportize/passport/v1"


def encode_label(*parts: str | int | bytes) -> bytes:
    """Encode a tuple so that no two tuples share an encoding.

    Each part becomes one type byte (``s``, ``i`` or ``b``), its length in 8 bytes and its
    payload: UTF-8 for text, 8 bytes for an integer. Numbers are unsigned and big-endian.

    Raises:
        InvalidArgument: Text that is not valid Unicode, or an integer outside ``[0, 2**64)``.
    """
    encoded = bytearray()
    for part in parts:
        if isinstance(part, bytes):
            tag, payload = b"b", part
        elif isinstance(part, str):
            try:
                tag, payload = b"s", part.encode()
            except UnicodeEncodeError:
                raise InvalidArgument(
                    f"the label {part!r} is not valid Unicode; use a name without lone surrogates"
                ) from None
        else:
            if not 0 <= part < 2**64:
                raise InvalidArgument(f"a label holds the integer {part}; use 0 to 2**64 - 1")
            tag, payload = b"i", part.to_bytes(8, "big")
        encoded += tag + len(payload).to_bytes(8, "big") + payload
    return bytes(encoded)


def derive_key(secret: bytes, *label: str | int | bytes) -> bytes:
    """HKDF-SHA256 of ``secret`` with :func:`encode_label` as its info: 32 bytes."""
    return _expanded(_extracted(secret), label)


def _extracted(secret: bytes) -> bytes:
    """HKDF's first half, the same for all labels."""
    return hmac.digest(_SALT, secret, "sha256")


def _expanded(extracted: bytes, label: tuple[str | int | bytes, ...]) -> bytes:
    """HKDF's second half: 32 bytes are one block of it, the first."""
    return hmac.digest(extracted, encode_label(*label) + b"\x01", "sha256")


def bits_of(raw: bytes) -> torch.Tensor:
    """Bits of bytes, lowest of each byte first: int8 ``[8 * len(raw)]`` of 0 and 1."""
    return torch.from_numpy(unpacked(raw).view(np.int8))


def unpacked(raw: bytes, total: int | None = None) -> NDArray[np.uint8]:
    """The same for numpy, or the first ``total`` of them."""
    return np.unpackbits(np.frombuffer(raw, dtype=np.uint8), count=total, bitorder="little")


class LabelledStream:
    """Everything pseudo-random that hangs on one 32-byte key.

    Whoever does not know the key cannot tell the outputs under different labels from independent
    uniform bytes (HKDF and SHAKE-256 taken as pseudo-random functions).
    """

    __slots__ = ("_extracted", "_key")

    def __init__(self, key: bytes) -> None:
        if not isinstance(key, bytes) or len(key) != KEY_BYTES:
            raise InvalidArgument(f"a key is {KEY_BYTES} bytes; got something else")
        self._key = key
        self._extracted = _extracted(key)

    def stream(self, *label: str | int | bytes, length: int) -> bytes:
        """The first ``length`` bytes under a label; longer requests begin with shorter ones."""
        seed = _expanded(self._extracted, label)
        return hashlib.shake_256(seed).digest(_count(length, "length", 0))

    def bits(self, *label: str | int | bytes, total: int) -> torch.Tensor:
        """Fair bits: int8 ``[total]`` of 0 and 1, lowest bit of each byte first."""
        return bits_of(self.stream(*label, length=(_count(total, "total", 1) + 7) // 8))[:total]

    def signs(self, *label: str | int | bytes, length: int) -> torch.Tensor:
        """Rademacher signs: float32 ``[length]``, bit 0 as +1 and bit 1 as -1."""
        return 1.0 - 2.0 * self.bits(*label, total=length).to(torch.float32)

    def uniform(self, *label: str | int | bytes, shape: Sequence[int]) -> torch.Tensor:
        """Uniform numbers in (-1, 1): float32 of ``shape``, filled in row-major order.

        Three bytes, lowest first, make ``k``; the number is ``(2 k + 1) / 2**24 - 1``: an odd
        multiple of ``2**-24``, hence exact in float32, never 0 and symmetric about 0.
        """
        sizes = [_count(size, "every size in shape", 1) for size in shape]
        raw = _tensor(self.stream(*label, length=3 * math.prod(sizes))).view(-1, 3).to(torch.int32)
        k = raw[:, 0] + (raw[:, 1] << 8) + (raw[:, 2] << 16)
        # The integer is odd and below 2**24 in size, so both steps are exact.
        return ((2 * k + 1 - 2**24).to(torch.float32) / 2**24).reshape(sizes)

    def words(self, *label: str | int | bytes, count: int) -> torch.Tensor:
        """32-bit unsigned words, lowest byte first: int64 ``[count]``."""
        raw = self.stream(*label, length=4 * _count(count, "count", 1))
        return torch.from_numpy(np.frombuffer(raw, dtype="<u4").astype(np.int64))

    def __repr__(self) -> str:
        return "LabelledStream(key hidden)"


def _count(value: int, name: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidArgument(f"{name} must be an integer of at least {least}, got {value!r}")
    return value


def _tensor(raw: bytes) -> torch.Tensor:
    # A bytearray, because torch warns about buffers that it could not write to.
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8)
