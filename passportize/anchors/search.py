"""Find the weight that each norm is bound to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from passportize.anchors.autograd_run import walk_autograd
from passportize.anchors.graph_rules import AnchorRules
from passportize.anchors.registration_order import search_by_order
from passportize.anchors.shapeless_rules import WidthRules
from passportize.anchors.trail import Attempt, Trail, named
from passportize.anchors.user_anchors import read_user_anchors
from passportize.anchors.weight_table import WeightTable
from passportize.errors import ExampleInputFailed, ExampleInputRequired
from passportize.signature.rows import anchor_fan_in, anchor_rows
from passportize.signature.site import Anchor
from passportize.tracing.example_inputs import ExampleInputs
from passportize.tracing.trace import Trace, can_run, trace_model

__all__ = ["AnchorSearch", "anchor_fan_in", "anchor_rows", "find_anchors"]


@dataclass
class AnchorSearch:
    """Result of :func:`find_anchors`.

    Attributes:
        anchors: Anchor of each norm that has one, by name.
        executed: Names of the norms that run in the forward pass, None where that is not known.
        method: ``"fx-meta"``, ``"fx-leaf"``, ``"autograd"`` or ``"order"``: how the model was read.
        notes: What a user should know, one sentence each.
        per_sample: How many numbers each norm takes in for one sample, by name, where known.
        attempts: What was tried for each norm, by name, in order.
        silent: Why a source was not asked, by source, where that is the same for all norms.
    """

    anchors: dict[str, Anchor] = field(default_factory=dict)
    executed: set[str] | None = None
    method: str = ""
    notes: list[str] = field(default_factory=list)
    per_sample: dict[str, float] = field(default_factory=dict)
    attempts: dict[str, list[Attempt]] = field(default_factory=dict)
    silent: dict[str, str] = field(default_factory=dict)

    def trail(self, name: str) -> Trail:
        """Everything that was tried for one norm, as a value."""
        return Trail.of(name, self.attempts.get(name, ()), self.silent)


def find_anchors(
    model: nn.Module,
    widths: Mapping[str, Sequence[int]],
    example_inputs: Any = None,
    user_anchors: Mapping[str, str] | None = None,
) -> AnchorSearch:
    """Find the weight that each norm is bound to. The model is left exactly as it was.

    The graph of the model comes from :func:`passportize.tracing.trace.trace_model`, the rules are
    those of :class:`passportize.anchors.graph_rules.AnchorRules`. With a real example input, one
    forward pass and a walk of its autograd graph
    (:func:`passportize.anchors.autograd_run.walk_autograd`) answer for what fx could not read;
    where both can tell, the fx graph counts and a note names the difference. What neither can tell
    is bound by registration order, with a note for each norm. A norm that ran but fits no weight
    has no anchor.

    Args:
        model: The model.
        widths: Acceptable channel counts for each norm, most wanted first, by the first name of
            the norm in ``model.named_modules()``.
        example_inputs: See :func:`passportize.tracing.trace.trace_model`.
        user_anchors: Weight names by norm name; they override every rule.

    Raises:
        AnchorNotFound: A weight in ``user_anchors`` does not exist or has no such width.
        UnknownSite: A norm in ``user_anchors`` does not exist.
        UninitializedModule: A lazy module has not seen data yet.
        ExampleInputFailed: Only a real forward pass could tell, and it raised an error.
        ExampleInputRequired: Only a real forward pass could tell, and no input was given.
    """
    chosen = read_user_anchors(model, widths, user_anchors or {})
    table = WeightTable(model)
    trace = _trace(model, widths, example_inputs)
    search = AnchorSearch(chosen, method=trace.method, notes=list(trace.notes))
    search.attempts = {name: [named("user", anchor.parts)] for name, anchor in chosen.items()}
    if trace.complete:
        search.executed = {name for name in widths if name in trace.called}
    _bind(search, dict(model.named_modules()), widths, trace, table)
    inputs = ExampleInputs.of(example_inputs) if example_inputs is not None else None
    if inputs is not None and can_run(model, inputs):
        _bind_by_walk(search, model, widths, inputs, trace)
    elif inputs is not None:
        search.silent["autograd"] = "the model or the example input holds no values"
    if search.executed is None:
        _bind_by_order(search, model, widths, trace)
    search.notes += table.notes
    search.silent |= _silent(search, trace, inputs)
    return search


def _silent(search: AnchorSearch, trace: Trace, inputs: ExampleInputs | None) -> dict[str, str]:
    """Why a source has nothing to say of the norms that it was not asked for."""
    reasons = {}
    if trace.reason:
        reasons["fx-meta"] = trace.reason
    if all(recording.shapes for recording in trace.recordings):
        reasons["fx-leaf"] = "no such graph was made"
    if inputs is None:
        reasons["autograd"] = "no example input was given"
    if search.executed is not None:
        reasons["order"] = "what runs is known without guessing"
    return reasons


def _trace(model: nn.Module, widths: Mapping[str, Sequence[int]], example_inputs: Any) -> Trace:
    """The eval graph, and the train graph where the first one leaves norms out."""
    trace = trace_model(model, example_inputs, norms=set(widths), training=False)
    if trace.complete and not set(widths) <= trace.called:
        more = trace_model(model, example_inputs, norms=set(widths), training=True)
        trace.recordings += more.recordings
    return trace


def _bind(
    search: AnchorSearch,
    modules: Mapping[str, nn.Module],
    widths: Mapping[str, Sequence[int]],
    trace: Trace,
    table: WeightTable,
) -> None:
    for recording in trace.recordings:
        rules = (AnchorRules if recording.shapes else WidthRules)(recording.graph, table)
        for name in rules.norms:
            if search.executed is not None and name in widths:
                search.executed.add(name)
            if isinstance(rules, AnchorRules) and (shape := rules.input_shape(name)):
                search.per_sample.setdefault(name, math.prod(shape) / (rules.rows or shape[0]))
            if name in widths and name not in search.anchors:
                anchor = rules.anchor(name, modules[name], widths[name])
                search.attempts.setdefault(name, []).extend(rules.attempts[name])
                if anchor is not None:
                    search.anchors[name] = anchor


def _bind_by_walk(
    search: AnchorSearch,
    model: nn.Module,
    widths: Mapping[str, Sequence[int]],
    inputs: ExampleInputs,
    trace: Trace,
) -> None:
    """One real forward pass: a second opinion where the graph is complete, else the source."""
    try:
        walk = walk_autograd(model, widths, inputs)
    except ExampleInputFailed as error:
        if not trace.complete:
            raise
        search.notes.append(f"the graph could not be compared with a real forward pass: {error}")
        search.silent["autograd"] = "the forward pass failed"
        return
    if not trace.complete:
        search.method, search.executed = "autograd", walk.executed
        search.notes.append(f"{trace.reason}; the autograd graph of one forward pass was used")
    elif search.executed is not None:
        search.executed |= walk.executed
    search.per_sample |= walk.per_sample
    for name, attempts in walk.attempts.items():
        search.attempts.setdefault(name, []).extend(attempts)
    for name, anchor in walk.anchors.items():
        ours = search.anchors.setdefault(name, anchor)
        made = {part.weight for part in anchor.parts}
        if ours.rule != "user" and {part.weight for part in ours.parts} != made:
            search.notes.append(
                f"{name}: bound to {_weights(ours)} by the fx graph; the autograd graph of a real "
                f"forward pass says {_weights(anchor)}"
            )


def _weights(anchor: Anchor) -> str:
    names = list(dict.fromkeys(part.weight for part in anchor.parts))
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _bind_by_order(
    search: AnchorSearch,
    model: nn.Module,
    widths: Mapping[str, Sequence[int]],
    trace: Trace,
) -> None:
    """What no graph tells, by a guess that is never silent."""
    if not trace.called and not search.anchors and widths:
        raise ExampleInputRequired(
            f"the model can't be read without an example input ({trace.reason}). Pass "
            "example_inputs=: a tensor, a tuple of arguments, a dict of keyword arguments, or a "
            "function that runs the model; or name the weights in anchors="
        )
    without = [norm for norm in widths if norm not in search.anchors]
    for norm, attempt in search_by_order(model, widths, without).items():
        search.attempts.setdefault(norm, []).append(attempt)
        if attempt.anchor is not None:
            search.anchors[norm] = attempt.anchor
            search.notes.append(
                f"{norm}: bound to {attempt.parts[0].weight} by registration order, which is a "
                "guess; pass example_inputs= or name the weight in anchors="
            )
    if any(anchor.rule == "order" for anchor in search.anchors.values()):
        search.method = search.method or "order"
