"""Find the weight that each norm is bound to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from passportize.anchors.autograd_run import walk_autograd
from passportize.anchors.graph_rules import AnchorRules
from passportize.anchors.shapeless_rules import WidthRules
from passportize.anchors.weight_table import WeightTable, part_of
from passportize.errors import AnchorNotFound, ExampleInputFailed, ExampleInputRequired, UnknownSite
from passportize.signature.rows import anchor_fan_in, anchor_rows, anchor_width
from passportize.signature.site import Anchor, AnchorPart
from passportize.tracing.example_inputs import ExampleInputs
from passportize.tracing.trace import Trace, can_run, trace_model
from passportize.tracing.weight_layers import owns_weight
from passportize.utils.names import closest_names

__all__ = ["AnchorSearch", "anchor_fan_in", "anchor_rows", "find_anchors", "read_user_anchors"]


@dataclass
class AnchorSearch:
    """Result of :func:`find_anchors`.

    Attributes:
        anchors: Anchor of each norm that has one, by name.
        executed: Names of the norms that run in the forward pass, None where that is not known.
        method: ``"fx-meta"``, ``"fx-leaf"``, ``"autograd"`` or ``"order"``: how the model was read.
        notes: What a user should know, one sentence each.
        per_sample: How many numbers each norm takes in for one sample, by name, where known.
    """

    anchors: dict[str, Anchor] = field(default_factory=dict)
    executed: set[str] | None = None
    method: str = ""
    notes: list[str] = field(default_factory=list)
    per_sample: dict[str, float] = field(default_factory=dict)


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
    if trace.complete:
        search.executed = {name for name in widths if name in trace.called}
    _bind(search, dict(model.named_modules()), widths, trace, table)
    inputs = ExampleInputs.of(example_inputs) if example_inputs is not None else None
    if inputs is not None and can_run(model, inputs):
        _bind_by_walk(search, model, widths, inputs, trace)
    if search.executed is None:
        _bind_by_order(search, model, widths, trace)
    search.notes += table.notes
    return search


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
        return
    if not trace.complete:
        search.method, search.executed = "autograd", walk.executed
        search.notes.append(f"{trace.reason}; the autograd graph of one forward pass was used")
    elif search.executed is not None:
        search.executed |= walk.executed
    search.per_sample |= walk.per_sample
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
    """The last resort: the last weight module of fitting width registered before a norm."""
    seen = trace.called
    if not seen and not search.anchors and widths:
        raise ExampleInputRequired(
            f"the model can't be read without an example input ({trace.reason}). Pass "
            "example_inputs=: a tensor, a tuple of arguments, a dict of keyword arguments, or a "
            "function that runs the model; or name the weights in anchors="
        )
    order = list(model.named_modules())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for position, (norm, _) in enumerate(order):
        if norm not in widths or norm in search.anchors:
            continue
        for _, module in reversed(order[:position]):
            part = _order_part(module, names, widths[norm])
            if part is not None:
                search.anchors[norm] = Anchor((part,), "order")
                search.notes.append(
                    f"{norm}: bound to {part.weight} by registration order, which is a guess; pass "
                    "example_inputs= or name the weight in anchors="
                )
                break
    if any(anchor.rule == "order" for anchor in search.anchors.values()):
        search.method = search.method or "order"


def _order_part(
    module: nn.Module, names: Mapping[int, str], widths: Sequence[int]
) -> AnchorPart | None:
    weight = module._parameters.get("weight")
    if not owns_weight(module) or weight is None or id(weight) not in names:
        return None
    part = part_of(module, names[id(weight)])
    for width in widths:
        if not nn.parameter.is_lazy(weight) and anchor_width(weight.shape, part) == width:
            return replace(part, channels=width)
    return None


def read_user_anchors(
    model: nn.Module, widths: Mapping[str, Sequence[int]], chosen: Mapping[str, str]
) -> dict[str, Anchor]:
    """Check the anchors that a user named and bring them into the usual form.

    Args:
        model: The model.
        widths: Acceptable channel counts of each norm.
        chosen: Weight names by norm name.

    Raises:
        UnknownSite: There is no such norm.
        AnchorNotFound: There is no such weight, or it has no such number of channels.
    """
    parameters = dict(model.named_parameters())
    modules = dict(model.named_modules())
    found: dict[str, Anchor] = {}
    for norm, weight in chosen.items():
        if norm not in widths:
            raise UnknownSite(
                f"anchors: {norm!r} is no normalization layer that can be bound."
                + closest_names(norm, list(widths))
            )
        if weight not in parameters:
            raise AnchorNotFound(
                f"{norm}: its anchor {weight!r} is no parameter of the model."
                + closest_names(weight, list(parameters))
            )
        owner = modules.get(weight.rpartition(".")[0])
        found[norm] = _user_anchor(
            norm, weight, tuple(parameters[weight].shape), owner, widths[norm]
        )
    return found


def _user_anchor(
    norm: str,
    weight: str,
    shape: tuple[int, ...],
    owner: nn.Module | None,
    widths: Sequence[int],
) -> Anchor:
    if len(shape) >= 2:
        for axis in ("output", "input"):
            part = part_of(owner, weight, axis)
            for width in widths:
                if anchor_width(shape, part) == width:
                    return Anchor((replace(part, channels=width),), "user")
    raise AnchorNotFound(
        f"{norm}: its anchor {weight!r} has shape {shape}, so it neither makes nor reads "
        f"{' or '.join(map(str, widths))} channels. Name a weight that does"
    )
