"""Rows of a weight as parts of an anchor, or why there are none."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from torch import nn

from passportize.anchors.track import Track
from passportize.signature.site import AnchorPart
from passportize.tracing.weight_layers import expert_shape_of, standardises_weight

__all__ = ["MERGED", "UNKNOWN", "Refusal", "part_for", "part_of"]


class Refusal(NamedTuple):
    """Why a step makes or reads no rows that a norm could be bound to.

    Attributes:
        why: The reason.
        weight: Name of the parameter that the step multiplies by; empty where there is none.
    """

    why: str
    weight: str = ""


UNKNOWN = Refusal("it has weights, and what it does with them is not known")
"""Said of modules that are neither linear layers nor norms."""

MERGED = Refusal("its weight is merged into another one later, or thrown away")
"""Said of the weights that peft adds to a layer."""


def part_of(module: nn.Module | None, weight: str, axis: str = "output") -> AnchorPart:
    """How the weight of a module is laid out, as a part for no channels yet.

    Args:
        module: The module that owns the weight, None where nobody knows.
        weight: Name of the parameter.
        axis: ``"output"`` or ``"input"``.
    """
    groups = getattr(module, "groups", 1)
    return AnchorPart(
        weight,
        0,
        axis,
        groups=groups if isinstance(groups, int) else 1,
        transposed=bool(getattr(module, "transposed", False)),
        expert_shape=expert_shape_of(module) if module is not None else (),
        centred=module is not None and standardises_weight(module),
    )


def part_for(track: Track, whole: AnchorPart) -> AnchorPart:
    """The rows of a weight that stand for the channels of a track."""
    return replace(whole, channels=track.channels, start=track.start, repeats=track.repeats)
