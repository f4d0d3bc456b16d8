"""What a search on a recorded graph writes into its trail."""

from __future__ import annotations

import operator
from collections.abc import Sequence

from torch import fx

from passportize.anchors.trail import SEARCHED, TAKEN, Met, Step
from passportize.anchors.weight_parts import Refusal
from passportize.signature.site import AnchorPart
from passportize.tracing.graph import first_operand, operands, step_name
from passportize.tracing.operations import MIXING_STEPS, Kind, steps

__all__ = [
    "AFTER", "AGAIN", "BEFORE", "OTHER", "UNREAD", "answered", "dead_end", "searched", "step_of",
    "steps_of",
]  # fmt: skip

_FACTOR = steps(Kind.FACTOR)
_LAYOUT = steps(Kind.PERMUTE, Kind.RESHAPE, Kind.BROADCAST, Kind.COPY)

OTHER = "it is broadcast, or the channels of the norm are not in it"
BEFORE = "it runs before the weight that was taken"
AGAIN = "another way to the weight that was taken, over more steps or by a later operand"
UNREAD = "nothing in the graph reads it"
AFTER = "it runs after the weight that was taken"


def step_of(node: fx.Node) -> Step:
    """A step of a graph as a value."""
    if node.op == "call_module":
        return Step(step_name(node), str(node.target))
    if node.op == "get_attr":
        constant = node.meta.get("constant")
        return Step("constant") if constant else Step("parameter", str(node.target))
    if node.op == "placeholder":
        return Step("input", str(node.target))
    return Step(step_name(node), node.meta.get("module", ""), _factor_of(node))


def _factor_of(node: fx.Node) -> str:
    """The parameter that a product multiplies with, in whatever shape; empty for other steps."""
    if step_name(node) not in _FACTOR:
        return ""
    for operand in operands(node):
        source: fx.Node | None = operand
        while source is not None and step_name(source) in _LAYOUT:
            source = first_operand(source)
        if source is not None and source.op == "get_attr" and not source.meta.get("constant"):
            return str(source.target)
    return ""


def steps_of(path: Sequence[fx.Node]) -> tuple[Step, ...]:
    """The steps of a path as values."""
    return tuple(step_of(node) for node in path)


def answered(node: fx.Node, answer: AnchorPart | Refusal, path: Sequence[fx.Node]) -> Met:
    """What the table of weights says of a step that is a linear map.

    Args:
        node: The step.
        answer: The rows, or why there are none.
        path: The steps between it and the norm, nearest to the norm last.
    """
    if isinstance(answer, Refusal):
        return Met(step_of(node), answer.why, answer.weight, steps_of(path))
    return Met(step_of(node), TAKEN, answer.weight, steps_of(path), (answer,))


def searched(node: fx.Node, before: str, path: Sequence[fx.Node]) -> Met:
    """A step that leads nowhere, which is known from the search for the norm ``before``."""
    return Met(step_of(node), SEARCHED, crossed=steps_of(path), before=before)


def dead_end(node: fx.Node, path: Sequence[fx.Node]) -> Met:
    """A step that is no linear map by a parameter and that no channels are followed through."""
    source = node.args[0] if node.target is operator.getitem else node
    if node.op == "placeholder":
        why = "an input of the model"
    elif node.op == "get_attr":
        why = "a tensor that no weight makes"
    elif node.op == "output":
        why = "the output of the model"
    elif isinstance(source, fx.Node) and step_name(source) in MIXING_STEPS:
        why = "it mixes channels or makes new ones"
    else:
        why = "the channels of the norm do not go through it as they are"
    return Met(step_of(node), why, crossed=steps_of(path))
