"""Follow the channels of a model forwards, step by step of a recorded graph.

Every tensor of the graph gets labels of its own shape, the atoms of its entries
(:mod:`passportize.alignment.channels`); dimensions along which they are equal cost nothing. Steps
that only move entries are carried out on the labels themselves. A step that is not known pins
whatever goes into it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from passportize.alignment.channels import BLANK, FIXED, ChannelLabels, Diagonal, thin
from passportize.alignment.walk_arithmetic import (
    PAIRING_STEPS,
    REDUCING_STEPS,
    UNARY_STEPS,
    label_pair,
    label_reduction,
    label_unary,
)
from passportize.alignment.walk_attention import ATTENTION_STEPS, AttentionLabels
from passportize.alignment.walk_layers import label_norm, label_weight, over_positions
from passportize.tracing.graph import argument, shape_of, step_name
from passportize.tracing.operations import RESHAPE_STEPS, Kind, steps

__all__ = ["LabelWalk"]

_LAYOUT = steps(
    *(Kind.PERMUTE, Kind.RESHAPE, Kind.BROADCAST, Kind.MOVE, Kind.SPLIT, Kind.SLICE, Kind.INDEX),
    *(Kind.CAT, Kind.STACK, Kind.SHUFFLE),
)
_FACTORS = steps(Kind.FACTOR)
_MOST_ATOMS = 1 << 20


class LabelWalk:
    """Labels of every tensor in one graph.

    Where layers mix positions, the same for every channel (a transposed linear layer), the channels
    pass unchanged. The units that such layers make are followed by a second walk, in which the
    channels stand still.

    Args:
        model: The model that was recorded.
        graph: Its graph, with shapes.
        first: The first walk, if this is the second.

    Attributes:
        labels: What was found, by both.
        mixing: Names of the modules that mix positions.
        loose: Atoms of every parameter that is added to or multiplied with channels directly, by
            name, in its shape, and the step.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph, first: LabelWalk | None = None) -> None:
        self.labels: ChannelLabels = ChannelLabels() if first is None else first.labels
        self.mixing: set[str] = set()
        self._making = None if first is None else first.mixing
        self.loose: dict[str, tuple[Tensor, int]] = {}
        self._attention = AttentionLabels(self.labels)
        self._modules = dict(model.named_modules())
        self._tensors: Mapping[str, Tensor] = {
            **dict(model.named_buffers()),
            **dict(model.named_parameters()),
        }
        self._names = {id(tensor): name for name, tensor in self._tensors.items()}
        self._done: set[str] = set()
        self._values: dict[fx.Node, Any] = {}
        for step, node in enumerate(graph.nodes):
            self._values[node] = self._label(node, step)

    def _label(self, node: fx.Node, step: int) -> Any:
        if node.op in ("placeholder", "get_attr"):
            return None  # made when it is asked for
        if node.op == "call_module":
            return self._module(node, step)
        if node.op not in ("call_function", "call_method"):
            return None
        name = step_name(node)
        shape = shape_of(node)
        if name in _LAYOUT:
            value = self._moved(node, name)
        elif name in ATTENTION_STEPS:
            value = self._attention.label(node, name, [self._of(a) for a in _nodes(node.args)])
        elif shape is not None and name in UNARY_STEPS | REDUCING_STEPS | PAIRING_STEPS:
            value = self._computed(node, name, shape)
        else:
            value = None
        if value is None or (isinstance(value, Tensor) and tuple(value.shape) != shape):
            return self._unknown(node)
        return value

    def _of(self, node: fx.Node) -> Any:
        """Labels of a tensor; those of parameters are made here."""
        value = self._values.get(node)
        if value is not None:
            return value
        shape = shape_of(node)
        if shape is None:
            return None
        value = torch.tensor(FIXED).expand(shape)
        if node.op == "get_attr":
            name = str(node.target)
            parameter = self._tensors.get(name) if not node.meta.get("constant") else None
            if value.numel() == 1:
                value = torch.tensor(BLANK).expand(shape)
            elif (
                isinstance(parameter, nn.Parameter)
                and value.numel() <= _MOST_ATOMS
                and self._making is None
            ):
                value = self.labels.fresh(value.numel()).view(shape)
                self.loose[name] = (value, len(self._values))
        self._values[node] = value
        return value

    def _unknown(self, node: fx.Node) -> Tensor | None:
        for source in node.all_input_nodes:
            self._pin(self._of(source))
        shape = shape_of(node)
        return torch.tensor(FIXED).expand(shape) if shape is not None else None

    def _pin(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self.labels.pin(value)
        elif isinstance(value, (tuple, list)):
            for item in value:
                self._pin(item)

    # --- layers ---------------------------------------------------------------------------------

    def _module(self, node: fx.Node, step: int) -> Tensor | None:
        shape, name = shape_of(node), str(node.target)
        module, kind = self._modules[name], node.meta.get("kind")
        source = node.args[0] if node.args else None
        found = None
        values = self._of(source) if isinstance(source, fx.Node) else None
        if shape is not None and isinstance(values, Tensor):
            passed = self._passed(name, module, values, shape)
            if passed is not None:
                return passed
        if shape is not None and isinstance(source, fx.Node) and name not in self._done:
            before = len(self.labels.axes)
            if isinstance(values, Tensor) and kind in ("weight", "norm"):
                label = label_weight if kind == "weight" else label_norm
                found = label(self.labels, module, self._names, values, step)
            if found is None:
                del self.labels.axes[before:]
        elif name in self._done:
            own = {self._names[id(tensor)] for tensor in module.parameters()}
            for axis in self.labels.axes:
                if axis.tensor in own:
                    self.labels.pin(axis.atoms)
        self._done.add(name)
        if found is None or shape is None or len(found[0]) != shape[found[1]]:
            return self._unknown(node)
        outputs, dim = found
        return outputs.view([-1 if d == dim else 1 for d in range(len(shape))]).expand(shape)

    def _passed(
        self, name: str, module: nn.Module, values: Tensor, shape: tuple[int, ...]
    ) -> Tensor | None:
        """Labels behind a module that treats what they count alike; None where it does not."""
        if (
            self._making is not None
            and name not in self._making
            and not bool((values > FIXED).any())
        ):
            return torch.tensor(FIXED).expand(shape)
        dim = over_positions(module, values)
        if dim is None or (name in self._done and name not in self.mixing):
            return None
        self.labels.unscale(values)
        if not isinstance(module, nn.Linear):
            self.labels.stiffen(values)
        self.mixing.add(name)
        self._done.add(name)
        return values.narrow(dim, 0, 1).expand(shape)

    # --- steps ----------------------------------------------------------------------------------

    def _moved(self, node: fx.Node, name: str) -> Any:
        """A step that moves entries, carried out on labels."""
        if name == "getitem" and any(isinstance(a, fx.Node) for a in _flat(node.args[1:])):
            return None

        def given(value: Any) -> Any:
            if isinstance(value, fx.Node):
                labels = self._of(value)
                return labels.view(labels.shape) if isinstance(labels, Tensor) else labels
            return value

        args: Any = fx.node.map_aggregate(node.args, given)
        kwargs: Any = fx.node.map_aggregate(node.kwargs, given)
        if name == "pad":
            if argument(node, 2, "mode", "constant") != "constant":
                return None
            return torch.nn.functional.pad(args[0], args[1], value=BLANK)
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

    def _source(self, node: fx.Node) -> Tensor | None:
        first = node.args[0] if node.args else next(iter(node.kwargs.values()), None)
        value = self._of(first) if isinstance(first, fx.Node) else None
        return value if isinstance(value, Tensor) else None

    def _computed(self, node: fx.Node, name: str, shape: tuple[int, ...]) -> Tensor | None:
        """A step that computes with the entries."""
        if name in PAIRING_STEPS:
            operands = [item for item in node.all_input_nodes if item.meta.get("floating", True)]
            found = [self._of(item) for item in operands]
            if not found or not all(isinstance(value, Tensor) for value in found):
                return None
            if name in _FACTORS and len(found) == 2:
                scaled = self._scaled(found, shape)
                if scaled is not None:
                    return scaled
            return label_pair(self.labels, name, found, shape)
        values = self._source(node)
        if values is None:
            return None
        if name in REDUCING_STEPS:
            return label_reduction(self.labels, node, values)
        return label_unary(self.labels, name, values, shape)

    def _scaled(self, found: list[Tensor], shape: tuple[int, ...]) -> Tensor | None:
        """Channels times a parameter of one number each (LayerScale); None for anything else."""
        for values, factors in (found, found[::-1]):
            flat = thin(factors).reshape(-1)
            name = next(
                (
                    name
                    for name, (atoms, _) in self.loose.items()
                    if flat.numel() == atoms.numel() > 1 and torch.equal(flat, atoms.reshape(-1))
                ),
                None,
            )
            dims = [d for d in range(len(shape)) if d >= len(shape) - factors.dim()]
            dims = [d for d in dims if factors.shape[d - len(shape)] == flat.numel()]
            whole = thin(torch.broadcast_to(values, shape))
            varied = [d for d in range(len(shape)) if whole.shape[d] > 1]
            varied = [d for d in varied if bool((whole != whole.narrow(d, 0, 1)).any())]
            if name is None or not dims or varied != dims[-1:]:
                continue
            inputs = whole.movedim(dims[-1], -1).reshape(-1, flat.numel())[0]
            if bool((inputs <= FIXED).any()):
                continue
            outputs = self.labels.fresh(flat.numel())
            for atoms in (inputs, flat):
                self.labels.accompany(atoms, outputs)
                self.labels.unscale(atoms)
            self.labels.unscale(outputs)
            step = len(self._values)
            diagonal = Diagonal("factor", inputs, outputs, {"weight": name}, 0, 0.0, step)
            self.labels.diagonals.append(diagonal)
            size = [-1 if d == dims[-1] else 1 for d in range(len(shape))]
            return outputs.view(size).expand(shape)
        return None


def _nodes(arguments: Any) -> list[fx.Node]:
    return [item for item in _flat(list(arguments)) if isinstance(item, fx.Node)]


def _flat(value: Any) -> list[Any]:
    if isinstance(value, (tuple, list)):
        return [item for part in value for item in _flat(part)]
    if isinstance(value, slice):
        return [value.start, value.stop, value.step]
    return [value]
