"""What the reading key of a passport gives: every vector, number and bit, the message read back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from passportize.errors import InvalidArgument, MessageTooLong
from passportize.passport import message_code as messages
from passportize.passport.derivation import LabelledStream
from passportize.passport.images import PassportImages
from passportize.passport.message import OwnerMessage
from passportize.passport.secret_holder import SecretHolder

__all__ = ["ReadingKey"]


class ReadingKey(SecretHolder):
    """32 bytes, with the owner message and the images that they were derived from.

    Args:
        key: The bytes.
        message: The owner message.
        images: The pictures of an image passport.
    """

    __slots__ = ("_images", "_keyed", "_message", "_reading_key")

    _images: PassportImages | None
    _keyed: LabelledStream
    _message: OwnerMessage
    _reading_key: bytes

    def __init__(self, key: bytes, message: OwnerMessage, images: PassportImages | None) -> None:
        for name, value in (
            ("_images", images),
            ("_keyed", LabelledStream(key)),
            ("_message", message),
            ("_reading_key", key),
        ):
            object.__setattr__(self, name, value)

    @property
    def reading_key(self) -> bytes:
        """32 bytes that give every vector and bit, but prove nothing about who owns the model.

        Secret like the passport itself: whoever has it can locate and damage the mark. Hand it to
        an expert who is to read a message without being told whose.
        """
        return self._reading_key

    def vector(self, site: str, side: str, part: int, length: int) -> torch.Tensor:
        """A passport vector: Rademacher signs, exact in every floating-point type.

        Args:
            site: Name of the normalization layer.
            side: ``"gamma"`` or ``"beta"``.
            part: Index of the anchor part, 0 for sites with one.
            length: Number of entries. A longer vector begins with the shorter one.

        Returns:
            float32 ``[length]`` of +1 and -1.

        Raises:
            InvalidArgument: Another side, a negative part or a length below 1.
        """
        return self._keyed.signs("vector", site, _side(side), part, length=length)

    def uniform(self, site: str, side: str, part: int, shape: Sequence[int]) -> torch.Tensor:
        """A random passport as in the published system: uniform in (-1, 1).

        Args:
            site: Name of the normalization layer.
            side: ``"gamma"`` or ``"beta"``.
            part: Index of the anchor part.
            shape: Sizes of the result, filled in row-major order.

        Returns:
            float32 of ``shape``: odd multiples of ``2**-24``, the same everywhere.

        Raises:
            InvalidArgument: Another side, a negative part or a size below 1.
        """
        return self._keyed.uniform("uniform", site, _side(side), part, shape=shape)

    def bits(self, total: int, *, require_message: bool = False) -> torch.Tensor:
        """The signature: pseudo-random bits XOR the owner message laid over all positions.

        Null hypothesis (the key was drawn independently of the weights): the pseudo-random bits
        are fair, independent coins, and a fair coin XOR any fixed bit is a fair coin. So the bits
        match any fixed reading like ``total`` fair coin tosses, and the binomial p-value is
        exact. The message is no loophole: it is part of the key, so whoever changes the message
        draws all coins anew.

        Args:
            total: Number of signature bits of the model.
            require_message: Insist on room for one copy of the owner message at least.

        Returns:
            int8 ``[total]`` of 0 and 1. More bits begin with the fewer.

        Raises:
            InvalidArgument: A total below 1.
            MessageTooLong: The message was required and does not fit.
        """
        coins = self._keyed.bits("bits", total=total)
        if require_message and not self.message_fits(total):
            raise MessageTooLong(
                f"the owner message takes {self._message.frame_bits} signature bits and the "
                f"model has {total}; shorten owner or contact, or bind more layers"
            )
        return coins ^ messages.lay_over(self._message, total, self._keyed)

    def message_fits(self, total: int) -> bool:
        """Whether ``total`` signature bits hold the owner message once or more."""
        return total >= self._message.frame_bits

    def read_message(self, read_bits: Any, confidence: Any = None) -> OwnerMessage | None:
        """Read the owner message; see :func:`passportize.passport.message_code.read_message`.

        Args:
            read_bits: Tensor or array ``[total]`` of 0 and 1.
            confidence: Weights ``[total]`` of at least 0; 0 for bits that could not be read.

        Returns:
            The message, or None where the checksum fails.
        """
        return messages.read_message(self._reading_key, read_bits, confidence)

    def stream(self, label: str, length: int) -> bytes:
        """Pseudo-random bytes for any other use, ``"triggers"`` say, independent per label."""
        return self._keyed.stream("stream", label, length=length)


def _side(side: str) -> str:
    if side not in ("gamma", "beta"):
        raise InvalidArgument(f'side must be "gamma" or "beta", got {side!r}')
    return side
