"""What one private branch knows of the secret, kept out of checkpoints, files and prints."""

from __future__ import annotations

import torch
from torch import Tensor

from passportize.errors import PassportLocked

__all__ = ["SecretVectors"]


class SecretVectors:
    """Passport vectors and signature bits of one site.

    Not a parameter and not a buffer: DDP would broadcast it and a checkpoint would hold it. A
    pickled copy is empty ("locked"); a deep copy shares the tensors, which never change.

    Args:
        gamma, beta: One vector per part of the anchor, float32, ``[fan_in]`` each (or
            ``[groups, fan_in]`` for an image passport on a grouped convolution).
        bits: Signature bits as -1 and +1, float32, ``[channels]``.
        origin: The same on the CPU, for a copy on another device.
    """

    def __init__(
        self,
        gamma: tuple[Tensor, ...] = (),
        beta: tuple[Tensor, ...] = (),
        bits: Tensor | None = None,
        origin: SecretVectors | None = None,
    ) -> None:
        self._gamma = gamma
        self._beta = beta
        self._bits = bits
        self._origin = origin

    @property
    def locked(self) -> bool:
        """Whether the secret is missing."""
        return self._bits is None

    @property
    def pairs(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """Gamma and beta vector of every part."""
        return tuple(zip(self._gamma, self._beta, strict=True))

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
            tuple(vector.to(device) for vector in origin._gamma),
            tuple(vector.to(device) for vector in origin._beta),
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
