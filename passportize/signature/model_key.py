"""What a passport becomes for one model: the key that its vectors and bits are drawn from."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from passportize.errors import PassportError
from passportize.passport import message_code as messages
from passportize.passport.derivation import LabelledStream, derive_key
from passportize.passport.message import OwnerMessage
from passportize.passport.passport import Passport
from passportize.signature.layout import Layout, anchor_of
from passportize.signature.vectors import SecretVectors, Vectors

__all__ = ["ModelKey"]


class ModelKey:
    """A key derived from a passport's reading key and the digest of a model's layout.

    Everything that a model is marked with comes from it: whoever changes one row, name, shape or
    the order of the sites draws all vectors and bits anew. Byte by byte:
    ``docs/passport_format.md``.

    Args:
        passport: The owner's passport.
        layout: Where the bits of the model lie.
    """

    __slots__ = ("_key", "_keyed", "_layout", "_passport")

    def __init__(self, passport: Passport, layout: Layout) -> None:
        self._key = derive_key(passport.reading_key, "layout", layout.digest())
        self._keyed = LabelledStream(self._key)
        self._layout = layout
        self._passport = passport

    def bits(self) -> Tensor:
        """Signature bits of the model, int8 ``[layout.bits]`` of 0 and 1.

        Pseudo-random bits XOR the owner message laid over all positions. Null hypothesis (the key
        was drawn independently of the weights): the pseudo-random bits are fair, independent coins,
        and a fair coin XOR any fixed bit is a fair coin. So the bits match any fixed reading like
        so many fair coin tosses, and the binomial p-value is exact. The message is no loophole: it
        is part of the key, so whoever changes the message draws all coins anew.
        """
        total = self._layout.bits
        if not total:
            return torch.zeros(0, dtype=torch.int8, device="cpu")
        coins = self._keyed.bits("bits", total=total)
        return coins ^ messages.lay_over(self._passport.owner_message, total, self._keyed)

    def sides(self, index: int) -> tuple[Vectors, ...]:
        """The vectors of every anchor part of one site, see :mod:`passportize.signature.vectors`.

        Args:
            index: Index of the site in the layout.
        """
        site = self._layout.sites[index]
        formulation = self._layout.formulation(index)
        parts = zip(anchor_of(site).parts, self._layout.fan_in(index), strict=True)
        return tuple(
            formulation.draw(self._keyed, self._passport.images, site.name, number, part, length)
            for number, (part, length) in enumerate(parts)
        )

    def secrets(self) -> list[SecretVectors]:
        """Passport vectors and bits of every site of the layout, in order."""
        bits = self.bits().to(torch.float32) * 2 - 1
        counts = [site.bits for site in self._layout.sites]
        return [
            SecretVectors(self.sides(index), part)
            for index, part in enumerate(torch.split(bits, counts) if counts else ())
        ]

    def stream(self, label: str, length: int) -> bytes:
        """Pseudo-random bytes for any other use, independent per label."""
        return self._keyed.stream("stream", label, length=length)

    def read_message(self, read_bits: Any, confidence: Any = None) -> OwnerMessage | None:
        """The owner message in bits read from the weights, None where the checksum fails.

        Args:
            read_bits: ``[layout.bits]`` of 0 and 1.
            confidence: Weights ``[layout.bits]`` of at least 0; 0 for bits that were not read.
        """
        return messages.read_message(self._key, read_bits, confidence)

    def __repr__(self) -> str:
        return f"ModelKey({self._layout.bits} bits, key hidden)"

    def __reduce__(self) -> NoReturn:
        raise PassportError("a model key is never pickled, because it could read the model's bits")
