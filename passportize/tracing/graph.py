"""Reading the steps of a recorded graph: name, shape, arguments."""

from __future__ import annotations

from typing import Any

from torch import fx

__all__ = [
    "argument",
    "first_operand",
    "known_shape",
    "operands",
    "shape_of",
    "step_name",
    "tensor_list",
]


def step_name(node: fx.Node) -> str:
    """Plain name of a step: ``"add"`` for ``torch.add``, ``x + y``, ``x.add_(y)``."""
    if node.op == "call_function":
        name = getattr(node.target, "__name__", str(node.target))
        if name == "__get__":
            name = getattr(getattr(node.target, "__self__", None), "__name__", name)
    elif node.op == "call_method":
        name = str(node.target)
    elif node.op == "call_module":
        return str(node.meta.get("kind") or "module")
    else:
        return node.op
    return name.strip("_") if name not in ("_unsafe_view",) else name


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """Shape of the tensor that a step made, None where unknown or not a tensor."""
    shape = node.meta.get("shape")
    return shape if isinstance(shape, tuple) else None


def argument(node: fx.Node, position: int, keyword: str, default: Any = None) -> Any:
    """An argument of a step, given by position or by keyword."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(keyword, default)


def operands(node: fx.Node) -> list[fx.Node]:
    """The tensors that a step reads, in order, each once; masks and indices are left out."""
    return [
        item
        for item in node.all_input_nodes
        if shape_of(item) is not None and item.meta.get("floating", True)
    ]


def first_operand(node: fx.Node) -> fx.Node | None:
    """The step behind the first argument, if that is a tensor."""
    value = node.args[0] if node.args else next(iter(node.kwargs.values()), None)
    return value if isinstance(value, fx.Node) and shape_of(value) is not None else None


def known_shape(node: fx.Node) -> tuple[int, ...]:
    """Shape of a tensor that is known to have one."""
    shape = shape_of(node)
    assert shape is not None
    return shape


def tensor_list(node: fx.Node) -> list[fx.Node]:
    """The tensors that a concatenation or a stack joins."""
    value = argument(node, 0, "tensors", ())
    if not isinstance(value, (tuple, list)):
        return []
    return [item for item in value if isinstance(item, fx.Node) and shape_of(item) is not None]
