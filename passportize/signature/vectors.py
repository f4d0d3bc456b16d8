"""What one private branch knows of the secret, kept out of checkpoints, files and prints."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from passportize.errors import PassportLocked

__all__ = ["WINDOW", "SecretVectors", "Vectors", "companion"]


class SecretVectors:
    """Passport vectors and signature bits of one site.

    Not a parameter and not a buffer: DDP would broadcast it and a checkpoint would hold it. A
    pickled copy is empty ("locked"); a deep copy shares the tensors, which never change.

    Args:
        sides: The vectors of each part of the anchor.
        bits: Signature bits as -1 and +1, float32, ``[channels]``.
        origin: The same on the CPU, for a copy on another device.
    """

    def __init__(
        self,
        sides: tuple[Vectors, ...] = (),
        bits: Tensor | None = None,
        origin: SecretVectors | None = None,
    ) -> None:
        self._sides = sides
        self._bits = bits
        self._origin = origin

    @property
    def locked(self) -> bool:
        """Whether the secret is missing."""
        return self._bits is None

    @property
    def sides(self) -> tuple[Vectors, ...]:
        """Vectors of every part of the anchor."""
        return self._sides

    @property
    def bits(self) -> Tensor:
        """Signature bits as -1 and +1, ``[channels]``."""
        if self._bits is None:
            raise PassportLocked(
                "the private branch was loaded without its secret, which is never stored with a "
                "model; call passportize.unlock(model, passport) first"
            )
        return self._bits

    def to(self, device: torch.device) -> SecretVectors:
        """The same vectors on another device."""
        if self._bits is None or self._bits.device == device:
            return self
        # From the origin, since a stay on the meta device would lose the values.
        origin = self._origin or self
        if device.type == "cpu":
            return origin
        return SecretVectors(
            tuple(Vectors(side.values.to(device), side.offset) for side in origin._sides),
            origin.bits.to(device),
            origin,
        )

    @property
    def device(self) -> torch.device:
        """Where the vectors are."""
        return self.bits.device

    def __repr__(self) -> str:
        return "SecretVectors(locked)" if self.locked else "SecretVectors(hidden)"

    def __deepcopy__(self, memo: dict[int, object]) -> SecretVectors:
        return self

    def __reduce__(self) -> tuple[type[SecretVectors], tuple[()]]:
        return (SecretVectors, ())


class Vectors(NamedTuple):
    """The passport vectors of one part of an anchor.

    Attributes:
        values: Side by side, float32, ``[entries, count]``: ``s``, ``t`` and ``r`` for the
            normalised response, gamma and beta for the raw one (``[groups, entries, 2]`` for an
            image passport on a grouped convolution).
        offset: The first entry of a row that they answer to.
    """

    values: Tensor
    offset: int = 0

    @property
    def window(self) -> slice:
        """The entries of a row that they answer to."""
        return slice(self.offset, self.offset + len(self.values))


def companion(vector: Tensor, ranks: Tensor) -> Tensor:
    """The vector ``t`` to a vector ``s``: half of the signs changed, which half ``ranks`` decides.

    Args:
        vector: ``s``, ``[fan_in]``.
        ranks: Numbers to rank, ``[fan_in]``; the larger half marks what is changed.
    """
    order = torch.argsort(ranks, stable=True)
    mask = torch.ones_like(vector)
    mask[order[(len(order) + 1) // 2 :]] = -1
    return vector * mask


WINDOW = 256
"""Entries of a row that answer to the normalised response at most."""
