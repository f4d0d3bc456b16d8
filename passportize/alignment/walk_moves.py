"""Steps that move entries of a tensor, carried out on its labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx

from passportize.tracing.graph import step_name
from passportize.tracing.operations import RESHAPE_STEPS, Kind, steps

__all__ = ["LAYOUT_STEPS", "label_moved", "nodes_in"]

LAYOUT_STEPS = steps(
    *(Kind.PERMUTE, Kind.RESHAPE, Kind.BROADCAST, Kind.MOVE, Kind.SPLIT, Kind.SLICE, Kind.INDEX),
    *(Kind.CAT, Kind.STACK, Kind.SHUFFLE),
)


def label_moved(
    node: fx.Node, labels_of: Callable[[fx.Node], Any], tensors: Mapping[str, Tensor]
) -> Any:
    """What a step gives of labels; None where it depends on what goes through the model.

    Args:
        node: The step.
        labels_of: Labels of what a step before made.
        tensors: Parameters and buffers of the model, by name.
    """
    name = step_name(node)
    known: dict[fx.Node, Tensor] = {}
    if name == "getitem":
        for index in nodes_in(node.args[1:]):
            constant = _constant(index, tensors)
            if constant is None:
                return None
            known[index] = constant

    def given(value: Any) -> Any:
        if not isinstance(value, fx.Node):
            return value
        if value in known:
            return known[value]
        labels = labels_of(value)
        return labels.view(labels.shape) if isinstance(labels, Tensor) else labels

    args: Any = fx.node.map_aggregate(node.args, given)
    kwargs: Any = fx.node.map_aggregate(node.kwargs, given)
    if not callable(node.target):
        return None
    try:
        return node.target(*args, **kwargs)
    except (RuntimeError, TypeError, NotImplementedError):
        if name not in RESHAPE_STEPS or not isinstance(args[0], Tensor):
            return None
    try:
        return node.target(args[0].contiguous(), *args[1:], **kwargs)
    except (RuntimeError, TypeError, NotImplementedError):
        return None


def _constant(node: fx.Node, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """What an index is that follows from the model alone; None where it does not."""
    if node.meta.get("floating", True):
        return None
    if node.op == "get_attr":
        found = node.meta.get("value", tensors.get(str(node.target)))
        return found.cpu() if isinstance(found, Tensor) and not found.is_meta else None
    if node.op != "call_function" or step_name(node) not in LAYOUT_STEPS:
        return None
    known = {source: _constant(source, tensors) for source in node.all_input_nodes}
    if any(value is None for value in known.values()) or not callable(node.target):
        return None
    arguments: Any = fx.node.map_arg((node.args, node.kwargs), lambda item: known[item])
    value = node.target(*arguments[0], **arguments[1])
    return value if isinstance(value, Tensor) else None


def nodes_in(arguments: Any) -> list[fx.Node]:
    """The steps among arguments, in order."""
    return [item for item in _flat(list(arguments)) if isinstance(item, fx.Node)]


def _flat(value: Any) -> list[Any]:
    if isinstance(value, (tuple, list)):
        return [item for part in value for item in _flat(part)]
    if isinstance(value, slice):
        return [value.start, value.stop, value.step]
    return [value]
