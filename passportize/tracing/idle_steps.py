"""Steps of a recorded graph that change nothing, taken out of it.

A bound beyond all values, a ReLU where everything is positive, differences that are summed again:
such steps part layers that would be one chain without them. A branch that adds nothing and a gate
that is one everywhere bring layers of their own. No shape tells any of them, so the graph is
computed on real inputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, fx, nn

from passportize.tracing.example_inputs import ExampleInputs
from passportize.utils.frozen import trial

__all__ = ["LITTLE", "NOTHING", "without_idle_steps"]

LITTLE = 1e-3
"""Length of a difference, as a share of the whole, that a network hardly feels."""

NOTHING = 1e-7
"""The same, as rounding takes it away in single precision."""

_MOST_STEPS = 16
"""How many steps together are tried for doing nothing."""


def without_idle_steps(
    model: nn.Module,
    graph: fx.Graph,
    inputs: ExampleInputs | None,
    of_layers: float = NOTHING,
) -> fx.Graph:
    """A copy of a graph in which steps that change nothing on the inputs are missing.

    Taken out are functions, alone or several together, that change their input by no more than a
    thousandth, and with ``of_layers`` the layers that had a part in nothing else, as in ``x + 0 *
    layer(x)``. Where the graph cannot be computed, it stays as it is.

    Args:
        model: The model that was recorded; its buffers are left as they are.
        graph: Its graph, recorded with the same inputs in evaluation mode.
        inputs: Real ones; None where there are none.
        of_layers: How much layers may add that are taken out, as a share of the length. A branch
            with a fresh LayerScale adds a millionth.
    """
    copied = fx.Graph()
    own: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        own[node] = copied.node_copy(node, own.__getitem__)
    if inputs is None or inputs.runner is not None or not inputs.is_real:
        return copied
    idle: dict[fx.Node, fx.Node] = {}
    with trial(model):
        model.eval()
        for node, values in _computed(model, copied, inputs):
            source = _source_of(node, values, of_layers)
            if source is not None:
                idle[node] = idle.get(source, source)
    for node, source in idle.items():
        node.replace_all_uses_with(source)
    # With the steps before that only these read.
    read = set(idle)
    for node in reversed(list(copied.nodes)):
        if node in read and not node.users and node.op not in ("placeholder", "output"):
            read.update(node.all_input_nodes)
            copied.erase_node(node)
    return copied


def _source_of(node: fx.Node, values: Mapping[fx.Node, Any], of_layers: float) -> fx.Node | None:
    """The step before whose output a step gives again; None if there is none."""
    if not _is_own(node):
        return None
    value = values.get(node)
    tried = [source for source in node.all_input_nodes if source.op != "get_attr"]
    direct = len(tried)
    for number, source in enumerate(tried):
        if number >= _MOST_STEPS:
            return None
        apart = _apart(value, values.get(source))
        if apart <= LITTLE and _is_closed(node, source):
            return source
        if apart <= of_layers and number < direct:
            return source
        if _is_own(source):
            tried += [one for one in source.all_input_nodes if one not in tried]
    return None


def _is_closed(node: fx.Node, source: fx.Node) -> bool:
    """Whether a step follows from another, constants and nothing else."""
    open_, seen = [node], {node, source}
    while open_:
        for before in open_.pop().all_input_nodes:
            if before in seen:
                continue
            seen.add(before)
            if before.op == "get_attr":
                continue
            if not _is_own(before) or len(seen) > _MOST_STEPS:
                return False
            open_.append(before)
    return True


def _is_own(node: fx.Node) -> bool:
    """Whether a step is a function, not a layer or an input."""
    return node.op == "call_function"


def _apart(value: Any, other: Any) -> float:
    """Length of the difference of two tensors, as a share of the second; infinite if not alike."""
    if not isinstance(value, Tensor) or not isinstance(other, Tensor) or value is other:
        return math.inf
    if value.shape != other.shape or value.numel() < 2 or not value.is_floating_point():
        return math.inf
    length = float(other.double().norm())
    return float((value.double() - other.double()).norm()) / length if length > 0 else math.inf


def _computed(
    model: nn.Module, graph: fx.Graph, inputs: ExampleInputs
) -> Iterator[tuple[fx.Node, Mapping[fx.Node, Any]]]:
    """Every step with what was computed so far, itself included.

    Values that nobody needs any more are dropped. Steps that cannot be computed, and what follows
    from them, are missing.
    """
    modules = dict(model.named_modules())
    state = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    given = iter([tensor for _, tensor in inputs.copy().tensors()])
    values: dict[fx.Node, Any] = {}
    last = _last_readers(graph)
    for node in graph.nodes:
        if node.op == "placeholder":
            values[node] = next(given)
        elif node.op == "get_attr":
            known = node.meta.get("value") if node.meta.get("constant") else state[str(node.target)]
            if isinstance(known, Tensor):
                values[node] = known.detach()
        elif all(source in values for source in node.all_input_nodes):
            try:
                _compute(node, modules, values)
            except Exception:  # whatever foreign code raises, the step is not known
                values.pop(node, None)
        yield node, values
        for source in last.get(node, ()):
            values.pop(source, None)


def _compute(node: fx.Node, modules: Mapping[str, nn.Module], values: dict[fx.Node, Any]) -> None:
    """One step. What it writes into is copied first, so that the step before keeps its value."""
    if node.op == "output" or not node.all_input_nodes:
        return
    first = node.all_input_nodes[0]
    target, version = values[first], getattr(values[first], "_version", None)
    kept = target.clone() if isinstance(target, Tensor) else None
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    if node.op == "call_module":
        found = modules[str(node.target)](*args, **kwargs)
    else:
        assert callable(node.target)
        found = node.target(*args, **kwargs)
    if kept is not None and target._version != version:
        found = target if not isinstance(found, Tensor) else found
        values[first] = kept
    values[node] = found


def _last_readers(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """For each step those whose values nobody needs behind it, later comparisons included."""
    order = {node: place for place, node in enumerate(graph.nodes)}
    nodes = list(graph.nodes)
    found: dict[fx.Node, list[fx.Node]] = {}
    for node in nodes:
        furthest = max((order[user] for user in node.users), default=order[node])
        found.setdefault(nodes[min(furthest + _MOST_STEPS, len(nodes) - 1)], []).append(node)
    return found
