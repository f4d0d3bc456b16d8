"""The passport: one secret and the owner it belongs to; all that marks a model comes from it."""

from __future__ import annotations

import os

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import nn

from passportize.errors import InvalidArgument
from passportize.passport import commitment as commitments
from passportize.passport.derivation import KEY_BYTES, LabelledStream, derive_key
from passportize.passport.file import PassportRecord, read_passport, write_passport
from passportize.passport.images import PassportImages
from passportize.passport.licensee import Licensee
from passportize.passport.mean_patch import record_patches
from passportize.passport.message import OwnerMessage
from passportize.passport.secret_holder import SecretHolder
from passportize.passport.signing_key import signing_key
from passportize.utils.frames import without_frames

__all__ = ["Passport"]


class Passport(SecretHolder):
    """An ownership passport. Immutable; make one with :meth:`generate` or :meth:`load`.

    A reading key is derived from the secret together with the owner message (and the images of an
    image passport), and from it and a model's layout the key of that model, which gives every
    vector and bit (:class:`passportize.signature.ModelKey`). So the message can be read back from
    a model without the secret, and nobody can fit a message or images to weights that exist
    already: another message is another key and another set of bits.

    Neither the secret nor the key is ever shown, logged, pickled or put into a checkpoint.
    """

    __slots__ = ("_commitment", "_images", "_keyed", "_message", "_reading_key", "_secret")

    _commitment: str
    _images: PassportImages | None
    _keyed: LabelledStream
    _message: OwnerMessage
    _reading_key: bytes
    _secret: bytes

    @without_frames
    def __init__(
        self, secret: bytes, message: OwnerMessage, images: PassportImages | None = None
    ) -> None:
        if not isinstance(secret, bytes) or len(secret) != KEY_BYTES:
            raise InvalidArgument(
                f"the secret must be {KEY_BYTES} bytes; leave it out to have one drawn"
            )
        digest = images.digest() if images is not None else b""
        reading_key = derive_key(secret, "reading key", message.payload, digest)
        salt = commitments.commitment_salt(secret)
        for name, value in (
            ("_commitment", commitments.commit(secret, salt, message, digest)),
            ("_images", images),
            ("_keyed", LabelledStream(reading_key)),
            ("_message", message),
            ("_reading_key", reading_key),
            ("_secret", secret),
        ):
            object.__setattr__(self, name, value)

    @classmethod
    @without_frames
    def generate(
        cls,
        owner: str,
        *,
        contact: str = "",
        date: str | None = None,
        secret: bytes | None = None,
    ) -> Passport:
        """A new passport.

        Args:
            owner: Who owns the models that will carry it.
            contact: How to reach the owner: an address, a URL; may be empty.
            date: ISO date, today (UTC) by default.
            secret: 32 bytes, drawn from the operating system by default. Give one only to
                reproduce a run.

        Raises:
            InvalidArgument: An empty owner, control characters, a date that is none, or a secret
                of another length.
            MessageTooLong: Owner and contact take more than 251 bytes together.
        """
        message = OwnerMessage.normalized(owner, contact, date)
        return cls(os.urandom(KEY_BYTES) if secret is None else secret, message)

    @without_frames
    def with_images(
        self, gamma: torch.Tensor, beta: torch.Tensor, model: nn.Module | None = None
    ) -> Passport:
        """The same secret and owner, with the pictures that the ``paper`` preset uses as passports.

        As published, the passport of a layer is its input when a picture runs through a
        pretrained plain model. Pictures and what they give at every layer enter the reading key
        and the commitment. So the bits differ from those of this passport, and neither can bits
        be chosen to suit pictures nor pictures to suit bits.

        Args:
            gamma: ``[C, H, W]`` or ``[N, C, H, W]``, uint8 (fed to the model divided by 255) or
                float32 (fed as it is).
            beta: The same for beta.
            model: The pretrained plain model; it is left as it was. Without one the pictures are
                bound to the passport, but no layer uses them.

        Raises:
            InvalidArgument: Another type, empty, not finite, or more than 64 MiB together.
            ExampleInputFailed: The model does not take the pictures.
        """
        images = PassportImages(gamma, beta)
        if model is not None:
            inputs = images.as_input("gamma"), images.as_input("beta")
            images = PassportImages(gamma, beta, record_patches(model, *inputs))
        return Passport(self._secret, self._message, images)

    @property
    def owner(self) -> str:
        """Who owns the models that carry this passport."""
        return self._message.owner

    @property
    def contact(self) -> str:
        """How to reach the owner; may be empty."""
        return self._message.contact

    @property
    def date(self) -> str:
        """ISO date of the passport."""
        return self._message.date

    @property
    def message(self) -> bytes:
        """The canonical compact owner message that is embedded."""
        return self._message.payload

    @property
    def owner_message(self) -> OwnerMessage:
        """Owner, contact and date as one value."""
        return self._message

    @property
    def images(self) -> PassportImages | None:
        """The pictures of an image passport, None for others."""
        return self._images

    @property
    def reading_key(self) -> bytes:
        """32 bytes that give every vector and bit, but prove nothing about who owns the model.

        Secret like the passport itself: whoever has it can locate and damage the mark. Hand it to
        an expert who is to read a message without being told whose.
        """
        return self._reading_key

    def message_fits(self, total: int) -> bool:
        """Whether ``total`` signature bits hold the owner message once or more."""
        return total >= self._message.frame_bits

    @without_frames
    def stream(self, label: str, length: int) -> bytes:
        """Pseudo-random bytes that hang on no model, for triggers say, independent per label."""
        return self._keyed.stream("stream", label, length=length)

    @property
    def claimant_chosen(self) -> bool:
        """Whether passport vectors come from pictures that the claimant chose."""
        return self._images is not None

    def commitment(self) -> str:
        """Salted SHA-256 over secret, message and images, as hex; safe to publish."""
        return self._commitment

    def check_commitment(self, commitment: str) -> bool:
        """Whether a published commitment is the one of this passport (constant time)."""
        return commitments.same_commitment(commitment, self._commitment)

    def public_key(self) -> bytes:
        """Ed25519 public key of the owner, 32 bytes; safe to publish."""
        return self._signing_key().public_key().public_bytes_raw()

    @without_frames
    def sign(self, message: bytes) -> bytes:
        """Ed25519 signature of the owner (RFC 8032, deterministic), 64 bytes."""
        return self._signing_key().sign(message)

    def _signing_key(self) -> Ed25519PrivateKey:
        digest = self._images.digest() if self._images is not None else b""
        return signing_key(self._secret, self._message.payload, digest)

    @without_frames
    def licensee(self, name: str) -> Licensee:
        """Somebody who gets a copy of their own, see :func:`passportize.mark_copy`.

        Args:
            name: Who; the same name is the same copy.

        Raises:
            InvalidArgument: The name is empty, too long or no text.
        """
        return Licensee(self, name)

    @without_frames
    def opening(self) -> dict[str, str]:
        """All that must be revealed to prove a commitment. It contains the secret.

        Check it with :func:`passportize.passport.commitment.check_commitment`.
        """
        return {
            "format": commitments.OPENING_FORMAT,
            "secret": self._secret.hex(),
            "salt": commitments.commitment_salt(self._secret).hex(),
            "owner": self.owner,
            "contact": self.contact,
            "date": self.date,
            "images_sha256": "" if self._images is None else self._images.digest().hex(),
        }

    @without_frames
    def save(
        self,
        path: str | os.PathLike[str],
        passphrase: str | None = None,
        *,
        overwrite: bool = False,
    ) -> None:
        """Write the passport file with mode 0600, sealed if a passphrase is given.

        The file appears complete or not at all.

        Args:
            path: Where to.
            passphrase: Seals the file with scrypt and ChaCha20-Poly1305.
            overwrite: Replace an existing file. Off by default: a lost passport cannot be
                made again.

        Raises:
            PassportFileError: The file exists or cannot be written.
            InvalidArgument: An empty passphrase.
        """
        record = PassportRecord(self._secret, self._message, self._images)
        write_passport(path, record, passphrase, overwrite=overwrite)

    @classmethod
    @without_frames
    def load(cls, path: str | os.PathLike[str], passphrase: str | None = None) -> Passport:
        """Read a passport file; warn where other users of the machine could read it too.

        Raises:
            PassportFileError: Missing, damaged, of another kind or of a newer version.
            WrongPassphrase: The passphrase does not open it, or it is sealed and none was given.
        """
        record = read_passport(path, passphrase)
        return cls(record.secret, record.message, record.images)

    def __repr__(self) -> str:
        return f"Passport(owner={self.owner!r}, commitment={self._commitment[:12]}...)"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Passport):
            return NotImplemented
        return self.check_commitment(other._commitment)

    def __hash__(self) -> int:
        return hash(self._commitment)
