"""The owner's signing key: Ed25519 (RFC 8032), derived from the secret, so that none is kept.

It belongs to one passport by construction: whoever opens the passport sees whose key signed.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from passportize.passport.derivation import derive_key

__all__ = ["PUBLIC_KEY_BYTES", "SIGNATURE_BYTES", "is_signed", "signing_key"]

PUBLIC_KEY_BYTES, SIGNATURE_BYTES = 32, 64


def signing_key(secret: bytes, payload: bytes, images_digest: bytes) -> Ed25519PrivateKey:
    """The private key of a passport, from what its reading key comes from, under its own label.

    Args:
        secret: 32 bytes.
        payload: Of the owner message.
        images_digest: Of an image passport; empty for others.
    """
    return Ed25519PrivateKey.from_private_bytes(
        derive_key(secret, "signing key", payload, images_digest)
    )


def is_signed(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether a signature of 64 bytes is that of a message under a public key of 32 bytes."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
