"""The two ways in which rows answer to a passport: all that depends on which of them is used.

``keyed`` and ``signature`` share the normalised response; ``paper`` has the raw one, as published.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from passportize.config import PassportConfig
from passportize.errors import InvalidArgument
from passportize.passport.derivation import LabelledStream
from passportize.passport.images import PassportImages
from passportize.signature.flipped_signs import flipped_rows
from passportize.signature.response import (
    Responses,
    normalised_responses,
    raw_responses,
    raw_sign_penalty,
    sign_penalty,
)
from passportize.signature.site import AnchorPart
from passportize.signature.turning import moved_rows, turned_rows
from passportize.signature.vectors import (
    RawVectors,
    Vectors,
    draw_raw_vectors,
    draw_sign_vectors,
)

__all__ = ["FORMULATIONS", "NORMALISED", "RAW", "Formulation", "formulation_of", "part_vectors"]


class Formulation(ABC):
    """What a response is. One object of each subclass; they hold nothing.

    Attributes:
        name: As layouts spell it.
    """

    name: ClassVar[str]

    @abstractmethod
    def draw(
        self,
        keyed: LabelledStream,
        images: PassportImages | None,
        site: str,
        index: int,
        part: AnchorPart,
        fan_in: int,
    ) -> Vectors:
        """The vectors of one part of an anchor.

        Args:
            keyed: The model's key.
            images: The pictures of an image passport.
            site: Name of the norm.
            index: Which part of its anchor.
            part: The part.
            fan_in: Entries of a row.
        """

    @abstractmethod
    def respond(self, rows: Sequence[Tensor], sides: Sequence[Any]) -> Responses:
        """Responses of all channels of a site.

        Args:
            rows: Rows of each part, ``[channels_i, fan_in_i]``, or their windows.
            sides: Vectors of each part.
        """

    @abstractmethod
    def penalty(
        self,
        responses: Responses,
        bits: Tensor,
        margin: float,
        parts: Sequence[tuple[int, int]],
    ) -> Tensor:
        """The sign loss of one site, before its weight.

        Args:
            responses: From :meth:`respond`.
            bits: -1 and +1, ``[channels]``.
            margin: Distance to keep from zero.
            parts: Number of channels and of entries per row, for every part.
        """

    @abstractmethod
    def turned(self, rows: Tensor, vectors: Any, bits: Tensor, margin: float) -> Tensor | None:
        """The nearest rows that carry their bits, None where all do.

        Args:
            rows: Those that answer, float64 ``[channels, entries]``.
            vectors: Of the part.
            bits: -1 and +1, float64 ``[channels]``.
            margin: Distance to leave from zero.
        """

    def flipped(self, rows: Tensor, vectors: Any, bits: Tensor, margin: float) -> Tensor | None:
        """Fresh rows that carry their bits by other signs of their entries, None where all do.

        Args:
            rows: Those that answer, float64 ``[channels, entries]``.
            vectors: Of the part.
            bits: -1 and +1, float64 ``[channels]``.
            margin: Distance to leave from zero.
        """
        return None

    @abstractmethod
    def confidence(self, responses: Responses) -> Tensor:
        """How far responses are from zero, in standard deviations, float64 ``[channels]``."""


class Normalised(Formulation):
    """Responses in standard deviations, to signs of each row's own."""

    name = "normalised"

    def draw(
        self,
        keyed: LabelledStream,
        images: PassportImages | None,
        site: str,
        index: int,
        part: AnchorPart,
        fan_in: int,
    ) -> Vectors:
        """See :func:`~passportize.signature.vectors.draw_sign_vectors`."""
        return draw_sign_vectors(keyed, site, index, part.channels, fan_in, part.picked)

    def respond(self, rows: Sequence[Tensor], sides: Sequence[Any]) -> Responses:
        """See :func:`~passportize.signature.response.normalised_responses`."""
        return normalised_responses(rows, sides)

    def penalty(
        self,
        responses: Responses,
        bits: Tensor,
        margin: float,
        parts: Sequence[tuple[int, int]],
    ) -> Tensor:
        """See :func:`~passportize.signature.response.sign_penalty`."""
        return sign_penalty(responses, bits, margin, parts)

    def turned(self, rows: Tensor, vectors: Any, bits: Tensor, margin: float) -> Tensor | None:
        """See :func:`~passportize.signature.turning.turned_rows`."""
        return turned_rows(rows, vectors, bits, margin)

    def flipped(self, rows: Tensor, vectors: Any, bits: Tensor, margin: float) -> Tensor | None:
        """See :func:`~passportize.signature.flipped_signs.flipped_rows`."""
        return flipped_rows(rows, vectors, bits, margin)

    def confidence(self, responses: Responses) -> Tensor:
        """The responses are in standard deviations already."""
        return responses.gamma.abs().to(torch.float64)


class Raw(Formulation):
    """Responses as published, to vectors that all rows of a layer share."""

    name = "raw"

    def draw(
        self,
        keyed: LabelledStream,
        images: PassportImages | None,
        site: str,
        index: int,
        part: AnchorPart,
        fan_in: int,
    ) -> Vectors:
        """Of the pictures, where the layer has one; random ones else."""
        image = None if images is None else part_vectors(images.patches, part, fan_in)
        return draw_raw_vectors(keyed, site, index, fan_in) if image is None else image

    def respond(self, rows: Sequence[Tensor], sides: Sequence[Any]) -> Responses:
        """See :func:`~passportize.signature.response.raw_responses`."""
        return raw_responses(rows, sides)

    def penalty(
        self,
        responses: Responses,
        bits: Tensor,
        margin: float,
        parts: Sequence[tuple[int, int]],
    ) -> Tensor:
        """See :func:`~passportize.signature.response.raw_sign_penalty`."""
        return raw_sign_penalty(responses, bits, margin)

    def turned(self, rows: Tensor, vectors: Any, bits: Tensor, margin: float) -> Tensor | None:
        """See :func:`~passportize.signature.turning.moved_rows`."""
        return moved_rows(rows, vectors, bits, margin)

    def confidence(self, responses: Responses) -> Tensor:
        """In units of the length of a row."""
        return responses.gamma.abs().double() / responses.length.double().clamp_min(1e-300)


NORMALISED = Normalised()
RAW = Raw()
FORMULATIONS: Mapping[str, Formulation] = {each.name: each for each in (NORMALISED, RAW)}


def formulation_of(config: PassportConfig) -> Formulation:
    """How the bits of a preset are read."""
    return RAW if config.formulation == "paper" else NORMALISED


def part_vectors(
    patches: Mapping[str, Tensor], part: AnchorPart, fan_in: int | None = None
) -> RawVectors | None:
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
        return RawVectors(patch[0].repeat(part.repeats, 1))
    # Without the weight the rows of a group are unknown: only the whole of it is safe.
    whole = part.start == 0 and part.repeats == 1 and part.groups == len(patch)
    return RawVectors(patch) if whole and part.channels % len(patch) == 0 else None
