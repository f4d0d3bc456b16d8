"""What a passport becomes for one model: the key that its vectors and bits are drawn from."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from passportize import owner_message as messages
from passportize.derivation import LabelledStream, derive_key
from passportize.errors import PassportError
from passportize.layout import RAW, Layout
from passportize.owner_message import OwnerMessage
from passportize.passport import Passport
from passportize.response import companion
from passportize.secret_vectors import SecretVectors

__all__ = ["ModelKey"]


class ModelKey:
    """A key derived from a passport's reading key and the digest of a model's layout.

    The labels below it are those of :class:`~passportize.passport.Passport`.

    Args:
        passport: The owner's passport.
        layout: Where the bits of the model lie.
    """

    __slots__ = ("_key", "_keyed", "_layout", "_message")

    def __init__(self, passport: Passport, layout: Layout) -> None:
        self._key = derive_key(passport.reading_key, "layout", layout.digest())
        self._keyed = LabelledStream(self._key)
        self._layout = layout
        self._message = passport.owner_message

    def bits(self) -> Tensor:
        """Signature bits of the model, int8 ``[layout.bits]`` of 0 and 1.

        Fair coins XOR the owner message; under the null hypothesis that the key does not know the
        weights each matches any reading with probability exactly 1/2.
        """
        total = self._layout.bits
        if not total:
            return torch.zeros(0, dtype=torch.int8)
        coins = self._keyed.bits("bits", total=total)
        return coins ^ messages.lay_over(self._message, total, self._keyed)

    def vectors(self, index: int) -> tuple[tuple[Tensor, Tensor], ...]:
        """Gamma and beta vector of every anchor part of one site, float32 ``[fan_in]`` each.

        Args:
            index: Index of the site in the layout.
        """
        site, raw = self._layout.sites[index], self._layout.readings[index] == RAW
        return tuple(
            (
                self._vector(raw, site.name, "gamma", part, length),
                self._vector(raw, site.name, "beta", part, length),
            )
            for part, length in enumerate(self._layout.fan_in(index))
        )

    def _vector(self, raw: bool, site: str, side: str, part: int, length: int) -> Tensor:
        if raw:
            return self._keyed.uniform("uniform", site, side, part, shape=(length,))
        return self._keyed.signs("vector", site, side, part, length=length)

    def secrets(self) -> list[SecretVectors]:
        """Passport vectors and bits of every site of the layout, in order."""
        signs = self.bits().to(torch.float32) * 2 - 1
        counts = [site.channels for site in self._layout.sites]
        secrets = []
        for index, bits in enumerate(torch.split(signs, counts) if counts else ()):
            pairs = self.vectors(index)
            gamma, beta = tuple(g for g, _ in pairs), tuple(b for _, b in pairs)
            secrets.append(SecretVectors(gamma, beta, bits))
        return secrets

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
        raise PassportError("A model key is never pickled, because it could read the model's bits.")
