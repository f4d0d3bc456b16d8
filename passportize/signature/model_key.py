"""What a passport becomes for one model: the key that its vectors and bits are drawn from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from passportize.errors import InvalidArgument, PassportError
from passportize.passport import message_code as messages
from passportize.passport.derivation import LabelledStream, derive_key
from passportize.passport.message import OwnerMessage
from passportize.passport.passport import Passport
from passportize.signature.layout import RAW, Layout, anchor_of
from passportize.signature.site import AnchorPart, Site
from passportize.signature.vectors import WINDOW, SecretVectors, Vectors, companion

__all__ = ["RANDOM_PASSPORT_POSITIONS", "ModelKey", "part_vectors"]

RANDOM_PASSPORT_POSITIONS = 256
"""Positions of a random passport: a map of 16 by 16, as inside the published networks."""


class ModelKey:
    """A key derived from a passport's reading key and the digest of a model's layout.

    The labels below it are those of :class:`~passportize.passport.passport.Passport`.

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

        Fair coins XOR the owner message; under the null hypothesis that the key does not know the
        weights each matches any reading with probability exactly 1/2.
        """
        total = self._layout.bits
        if not total:
            return torch.zeros(0, dtype=torch.int8, device="cpu")
        coins = self._keyed.bits("bits", total=total)
        return coins ^ messages.lay_over(self._passport.owner_message, total, self._keyed)

    def sides(self, index: int) -> tuple[Vectors, ...]:
        """The vectors of every anchor part of one site, see :mod:`passportize.signature.response`.

        Args:
            index: Index of the site in the layout.
        """
        site = self._layout.sites[index]
        raw = self._layout.readings[index] == RAW
        sides = []
        for part, length in enumerate(self._layout.fan_in(index)):
            if raw:
                images = self._passport.images
                image = None
                if images is not None:
                    image = part_vectors(images.patches, anchor_of(site).parts[part])
                sides.append(Vectors(self._uniform(site, part, length) if image is None else image))
                continue
            offset = 0
            if length > WINDOW:
                draw = self._keyed.stream("window", site.name, part, length=8)
                offset = int.from_bytes(draw, "big") % (length - WINDOW + 1)
                length = WINDOW
            gamma, beta = (
                self._keyed.signs("vector", site.name, side, part, length=length)
                for side in ("gamma", "beta")
            )
            ranks = self._keyed.uniform("companion", site.name, part, shape=(length,))
            values = torch.stack([gamma, companion(gamma, ranks), beta], dim=-1)
            sides.append(Vectors(values, offset))
        return tuple(sides)

    def _uniform(self, site: Site, part: int, length: int) -> Tensor:
        """Random passports as they enter the layer: as mean patches.

        The published passports are uniform in (-1, 1) over the whole layer input, and the mean
        over ``P`` positions divides their deviation by ``sqrt(P)``. ``P`` is taken as
        :data:`RANDOM_PASSPORT_POSITIONS` everywhere, so that no input size has to be known.
        """
        vectors = [
            self._keyed.uniform("uniform", site.name, side, part, shape=(length,))
            for side in ("gamma", "beta")
        ]
        return torch.stack(vectors, dim=-1) / math.sqrt(RANDOM_PASSPORT_POSITIONS)

    def secrets(self) -> list[SecretVectors]:
        """Passport vectors and bits of every site of the layout, in order."""
        bits = self.bits().to(torch.float32) * 2 - 1
        counts = [site.channels for site in self._layout.sites]
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


def part_vectors(
    patches: Mapping[str, Tensor], part: AnchorPart, fan_in: int | None = None
) -> Tensor | None:
    """Image passport of one part of an anchor.

    Args:
        patches: Mean patches by weight, ``[groups, entries, 2]``
            (:func:`passportize.passport.mean_patch.record_patches`).
        part: Rows of a weight.
        fan_in: Entries of one row, to be checked against the picture's.

    Returns:
        ``[fan_in, 2]`` to multiply the rows of :func:`passportize.signature.rows.anchor_rows` with,
        or ``[groups, fan_in, 2]`` for the equal runs of rows of a grouped convolution. None where
        the published system has no passport: a weight behind the norm, a transposed convolution,
        part of a group, a layer that was not recorded.

    Raises:
        InvalidArgument: The rows have another length than in the model that saw the pictures.
    """
    patch = patches.get(part.weight)
    if patch is None or part.axis != "output" or part.transposed:
        return None
    entries = patch.shape[1] * part.repeats
    if fan_in not in (None, entries):
        raise InvalidArgument(
            f"the image passport has {entries} entries for {part.weight}, the "
            f"model has {fan_in}; make it with Passport.with_images(..., model) for this model"
        )
    if len(patch) == 1:
        return patch[0].repeat(part.repeats, 1)
    # Without the weight the rows of a group are unknown: only the whole of it is safe.
    whole = part.start == 0 and part.repeats == 1 and part.groups == len(patch)
    return patch if whole and part.channels % len(patch) == 0 else None
