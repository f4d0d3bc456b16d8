"""The commitment to a passport: a salted SHA-256 to publish or timestamp before release.

Anyone can recompute it from the opening, with any SHA-256: see ``docs/passport_format.md``.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from passportize.errors import InvalidArgument
from passportize.passport.derivation import KEY_BYTES, derive_key, encode_label
from passportize.passport.message import OwnerMessage
from passportize.utils.frames import without_frames

__all__ = ["OPENING_FORMAT", "check_commitment", "commit", "commitment_salt", "same_commitment"]

OPENING_FORMAT = "passportize-opening-v1"
_DOMAIN = "passportize/commitment/v1"


def commitment_salt(secret: bytes) -> bytes:
    """The salt: 32 bytes derived from the secret, so that it never has to be stored."""
    return derive_key(secret, "commitment salt")


def commit(secret: bytes, salt: bytes, message: OwnerMessage, images_digest: bytes) -> str:
    """SHA-256 over domain, salt, secret, message and image digest, each with its length.

    Hiding: without the 256-bit secret the digest says nothing, even to those who guess the
    message. Binding: another opening of it would be a SHA-256 collision.

    Returns:
        64 lower-case hexadecimal digits.
    """
    encoded = encode_label(_DOMAIN, salt, secret, message.payload, images_digest)
    return hashlib.sha256(encoded).hexdigest()


def same_commitment(one: str, other: str) -> bool:
    """Compare two commitments in constant time, whatever the case of their digits."""
    if not isinstance(one, str) or not isinstance(other, str):
        raise InvalidArgument("a commitment is text: 64 hexadecimal digits")
    # Bytes, because compare_digest refuses text outside ASCII.
    return hmac.compare_digest(
        one.strip().lower().encode(errors="replace"), other.strip().lower().encode(errors="replace")
    )


@without_frames
def check_commitment(commitment: str, opening: Mapping[str, str]) -> bool:
    """Whether an opening (:meth:`passportize.Passport.opening`) belongs to a commitment.

    Args:
        commitment: What was published.
        opening: What was revealed: ``format``, ``secret``, ``salt``, ``owner``, ``contact``,
            ``date``, ``images_sha256`` (empty without images).

    Raises:
        InvalidArgument: The opening is incomplete or malformed. It is never quoted.
    """
    fields = ("format", "secret", "salt", "owner", "contact", "date", "images_sha256")
    missing = [name for name in fields if not isinstance(opening.get(name), str)]
    if missing:
        raise InvalidArgument(f"the opening lacks {', '.join(missing)} as text; ask for all of it")
    if opening["format"] != OPENING_FORMAT:
        raise InvalidArgument(f"this is not an opening of the format {OPENING_FORMAT!r}")
    try:
        secret, salt, images = (
            bytes.fromhex(opening[name]) for name in ("secret", "salt", "images_sha256")
        )
    except ValueError:
        raise InvalidArgument(
            "secret, salt and images_sha256 of the opening must be hexadecimal digits"
        ) from None
    if len(secret) != KEY_BYTES or len(salt) != KEY_BYTES or len(images) not in (0, 32):
        raise InvalidArgument("secret, salt or images_sha256 of the opening has a wrong length")
    message = OwnerMessage(opening["owner"], opening["contact"], opening["date"])
    right_salt = hmac.compare_digest(salt, commitment_salt(secret))
    return same_commitment(commitment, commit(secret, salt, message, images)) and right_salt
