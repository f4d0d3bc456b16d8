"""Passport vectors: what the rows of an anchor answer to, and how a live model holds them.

Every row has vectors of its own. If all rows of a layer answered to the same two vectors, these
would be the two leading directions of the rows' second moment, and anybody could read them out of
the released weights, turn them over and copy them. Vectors that are drawn anew for each row leave
no direction, no mask and no sign that two rows have in common.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from passportize.errors import PassportLocked
from passportize.passport.derivation import LabelledStream, unpacked

__all__ = [
    "RANDOM_PASSPORT_POSITIONS",
    "WINDOW",
    "RawVectors",
    "SecretVectors",
    "SignVectors",
    "Vectors",
    "draw_raw_vectors",
    "draw_sign_vectors",
    "turns_of",
]

WINDOW = 256
"""Entries of a row that answer to the normalised response at most."""

RANDOM_PASSPORT_POSITIONS = 256
"""Positions of a random passport: a map of 16 by 16, as inside the published networks."""


class SignVectors(NamedTuple):
    """Vectors of -1 and +1, three for every row of one part of an anchor.

    Attributes:
        codes: ``s``, ``t`` and ``r`` in bits 0, 1 and 2, a set bit for -1; uint8
            ``[rows, entries]``, a quarter of what the entries take as float32.
        offset: The first entry of the rows that they answer to.
        rows: Which rows of the part carry bits, in order, int64 ``[rows]``; None for all.
    """

    codes: Tensor
    offset: int = 0
    rows: Tensor | None = None

    @property
    def window(self) -> slice:
        """The entries of a row that they answer to."""
        return slice(self.offset, self.offset + self.codes.shape[1])

    @property
    def entries(self) -> int:
        """Length of the vectors."""
        return self.codes.shape[1]

    def picked(self, rows: Tensor) -> Tensor:
        """Of the rows of a part those that carry bits."""
        return rows if self.rows is None else rows[self.rows]

    def to(self, device: torch.device) -> SignVectors:
        """The same on another device."""
        rows = None if self.rows is None else self.rows.to(device)
        return SignVectors(self.codes.to(device), self.offset, rows)

    def signs(self, dtype: torch.dtype) -> Tensor:
        """``s``, ``t`` and ``r`` themselves, ``[3, rows, entries]``."""
        # Made on the device itself, in bytes up to the end: in floats it takes four times as long.
        bit = torch.arange(3, dtype=torch.uint8, device=self.codes.device)[:, None, None]
        negative = ((self.codes >> bit) & 1).view(torch.int8)
        return (1 - 2 * negative).to(dtype)

    def turns(self, dtype: torch.dtype) -> Tensor:
        """Which way the response of each row turns its channel's private scale, ``[rows]``.

        The first sign of ``r``, -1 or +1: a coin that no bit depends on. Channels that the private
        branch turns over are used by both branches in other ways than the rest, which shows a
        little in their rows and factors; so that says nothing of the bits.
        """
        return turns_of(SignVectors(self.codes[:, :1]).signs(dtype))


def turns_of(signs: Tensor) -> Tensor:
    """The same from ``s``, ``t`` and ``r``, ``[3, rows, entries]``: ``[rows]``."""
    return signs[2, :, 0]


class RawVectors(NamedTuple):
    """Gamma and beta vector as published: the same for all rows of one part of an anchor.

    Attributes:
        values: float32 ``[entries, 2]``, or ``[groups, entries, 2]`` for an image passport on a
            grouped convolution.
    """

    values: Tensor

    @property
    def window(self) -> slice | None:
        """Whole rows answer."""
        return None

    @property
    def rows(self) -> Tensor | None:
        """All rows of a part carry bits."""
        return None

    @property
    def entries(self) -> int:
        """Length of the vectors."""
        return self.values.shape[-2]

    def picked(self, rows: Tensor) -> Tensor:
        """All rows of a part."""
        return rows

    def to(self, device: torch.device) -> RawVectors:
        """The same on another device."""
        return RawVectors(self.values.to(device))


Vectors = SignVectors | RawVectors


def draw_sign_vectors(
    keyed: LabelledStream,
    site: str,
    part: int,
    channels: int,
    fan_in: int,
    picked: int | None = None,
) -> SignVectors:
    """Vectors for every row of one part of an anchor, independent of each other.

    ``s`` and ``r`` are fair signs; ``t`` is ``s`` with the signs of half of the entries changed,
    so that ``s . t`` is 0 (1 for an odd number of entries). Which half is a uniformly drawn one:
    each row ranks 32-bit numbers of its own, of equal ones the later entry is the larger. Rows that
    carry bits are picked in the same way.

    Args:
        keyed: The model's key.
        site: Name of the norm.
        part: Index of the anchor part.
        channels: Number of rows.
        fan_in: Entries of a row.
        picked: How many of the rows carry bits; None for all.
    """
    rows = None
    if picked is not None:
        drawn = keyed.words("rows", site, part, count=channels)
        order = torch.argsort(drawn * channels + torch.arange(channels, device="cpu"))
        rows, channels = order[channels - picked :].sort().values, picked
    offset, entries = 0, fan_in
    if fan_in > WINDOW:
        draw = keyed.stream("window", site, part, length=8)
        offset, entries = int.from_bytes(draw, "big") % (fan_in - WINDOW + 1), WINDOW
    shape = (channels, entries)
    if not channels:
        return SignVectors(torch.zeros(shape, dtype=torch.uint8, device="cpu"), offset, rows)
    total = channels * entries
    s, r = (
        unpacked(keyed.stream(side, site, part, length=(total + 7) // 8), total).reshape(shape)
        for side in ("gamma", "beta")
    )
    raw = keyed.stream("mask", site, part, length=4 * total)
    codes = _larger_half(np.frombuffer(raw, dtype="<u4").reshape(shape)).view(np.uint8)
    codes ^= s
    codes <<= 1
    codes |= s
    r <<= 2
    codes |= r
    return SignVectors(torch.from_numpy(codes), offset, rows)


def _larger_half(words: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Where the larger half of each row lies; of equal numbers the later one is the larger."""
    entries = words.shape[1]
    last = (entries - 1) // 2
    # numpy, since torch takes ten times as long for it.
    larger: NDArray[np.bool_] = words > np.partition(words, last, axis=1)[:, last, None]
    half = entries - 1 - last  # never more than these are larger than the one in the middle
    if np.count_nonzero(larger) == len(words) * half:
        return larger
    # Rows with equal numbers in the middle, few in a million, are ranked by place as well.
    tied = np.flatnonzero(larger.sum(1) != half)
    ranks = words[tied].astype(np.int64) * entries + np.arange(entries)
    larger[tied] = ranks > np.partition(ranks, last, axis=1)[:, last, None]
    return larger


def draw_raw_vectors(keyed: LabelledStream, site: str, part: int, fan_in: int) -> RawVectors:
    """Random passports as they enter the layer: as mean patches.

    The published passports are uniform in (-1, 1) over the whole layer input, and the mean over
    ``P`` positions divides their deviation by ``sqrt(P)``. ``P`` is taken as
    :data:`RANDOM_PASSPORT_POSITIONS` everywhere, so that no input size has to be known.

    Args:
        keyed: The model's key.
        site: Name of the norm.
        part: Index of the anchor part.
        fan_in: Entries of a row.
    """
    sides = [
        keyed.uniform("uniform", site, side, part, shape=(fan_in,)) for side in ("gamma", "beta")
    ]
    return RawVectors(torch.stack(sides, dim=-1) / math.sqrt(RANDOM_PASSPORT_POSITIONS))


class SecretVectors:
    """Passport vectors and signature bits of one site, as a live model holds them.

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
        sides = tuple(side.to(device) for side in origin._sides)
        return SecretVectors(sides, origin.bits.to(device), origin)

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
