"""Which weights are read less the mean of their rows.

A LayerNorm takes the mean over its channels, so where all that a weight writes goes straight to
LayerNorms (the residual stream of a transformer), a vector added to all its rows changes no
output. A large one would make all rows alike and with them all bits. Rows less their mean do not
move under it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from passportize.anchors.trail import Step
from passportize.signature.site import Anchor, AnchorPart
from passportize.surgery.norms import FoundNorm
from passportize.tracing.operations import Kind, Trait, autograd_steps, steps

__all__ = ["name_factors", "read_less_mean_rows"]

_FEWEST_CHANNELS = 8
"""Of fewer rows the mean is too large a part of each."""

_EQUAL_FOR_ALL_CHANNELS = autograd_steps(having=Trait.SHIFTED)
"""Steps that carry what was added to all channels on to all channels. A product is not among them:
behind a factor for each channel (LayerScale) the vector would have to be another for each, see
:mod:`passportize.signature.factored_rows`."""

_PRODUCTS = steps(Kind.FACTOR)


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


def name_factors(
    anchors: Mapping[str, Anchor],
    norms: Mapping[str, FoundNorm],
    crossed: Mapping[str, Sequence[Step]],
    parameters: Mapping[str, Tensor],
) -> dict[str, Anchor]:
    """The same anchors, with the parameter named that lies between a part and such a norm.

    Args:
        anchors: Anchor of each norm by name.
        norms: The norms by name.
        crossed: The steps between each norm and its anchor, where a graph tells them.
        parameters: Those of the model by name.
    """
    factors: dict[AnchorPart, str] = {}
    for name, anchor in anchors.items():
        products = [step for step in crossed.get(name, ()) if step.name in _PRODUCTS]
        if name not in norms or len(products) != 1:
            continue
        others = tuple(step for step in anchor.crossed if step != products[0].name)
        part, factor = anchor.parts[0], parameters.get(products[0].factor)
        if (
            factor is not None
            and factor.numel() == part.channels
            and part.repeats == 1
            and _only_differences_count(replace(anchor, crossed=others), norms[name])
        ):
            factors.setdefault(part, products[0].factor)
    return {
        name: replace(
            anchor,
            parts=tuple(replace(part, factor=factors.get(part, "")) for part in anchor.parts),
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
