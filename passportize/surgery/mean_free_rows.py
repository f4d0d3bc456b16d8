"""Which weights are read less the mean of their rows.

A LayerNorm takes the mean over its channels, so where all that a weight writes goes straight to
LayerNorms (the residual stream of a transformer), a vector added to all its rows changes no
output. A large one would make all rows alike and with them all bits. Rows less their mean do not
move under it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from passportize.signature.site import Anchor, AnchorPart
from passportize.surgery.norms import FoundNorm
from passportize.tracing.operations import Trait, autograd_steps

__all__ = ["read_less_mean_rows"]

_FEWEST_CHANNELS = 8
"""Of fewer rows the mean is too large a part of each."""

_EQUAL_FOR_ALL_CHANNELS = autograd_steps(having=Trait.SHIFTED)
"""Steps that carry what was added to all channels on to all channels. A product is not among them:
behind a factor for each channel (LayerScale) the vector would have to be another for each."""


def read_less_mean_rows(
    anchors: Mapping[str, Anchor], norms: Mapping[str, FoundNorm]
) -> dict[str, Anchor]:
    """The same anchors, with the parts marked whose norms take the mean over their channels.

    Decided by the norm and by what lies between it and the weight. A norm farther on that is bound
    to the same rows reads them in the same way.

    Args:
        anchors: Anchor of each norm by name.
        norms: The norms by name.
    """
    marked = {
        anchor.parts[0]
        for name, anchor in anchors.items()
        if name in norms and _only_differences_count(anchor, norms[name])
    }
    return {
        name: replace(
            anchor,
            parts=tuple(
                replace(part, less_mean_row=True) if part in marked else part
                for part in anchor.parts
            ),
        )
        for name, anchor in anchors.items()
    }


def _only_differences_count(anchor: Anchor, norm: FoundNorm) -> bool:
    part: AnchorPart = anchor.parts[0]
    return (
        norm.adapter is not None
        and norm.adapter.removes_mean(norm.module)
        and anchor.rule in ("upstream", "autograd")
        and part.axis == "output"
        and part.channels >= _FEWEST_CHANNELS
        and set(anchor.crossed) <= _EQUAL_FOR_ALL_CHANNELS
    )
