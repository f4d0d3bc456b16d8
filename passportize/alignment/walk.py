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

from passportize.alignment.axes import BLANK, FIXED, Axis
from passportize.alignment.channels import ChannelLabels, thin, varied
from passportize.alignment.walk_arithmetic import (
    PAIRING_STEPS,
    REDUCING_STEPS,
    UNARY_STEPS,
    label_factor,
    label_padding,
    label_pair,
    label_reduction,
    label_unary,
)
from passportize.alignment.walk_attention import ATTENTION_STEPS, AttentionLabels
from passportize.alignment.walk_layers import (
    Labelled,
    channels_along,
    label_product,
    label_weight,
    uniform_along,
)
from passportize.alignment.walk_moves import LAYOUT_STEPS, label_moved, nodes_in
from passportize.alignment.walk_norms import channels_in_heads, in_every_head, label_norm
from passportize.alignment.walk_positions import over_positions
from passportize.alignment.walk_products import WEIGHT_STEPS, ProductStep, is_blur, product_of
from passportize.alignment.walk_recurrent import label_recurrent
from passportize.tracing.graph import argument, shape_of, step_name
from passportize.tracing.operations import Kind, steps

__all__ = ["LabelWalk"]

_FACTORS = steps(Kind.FACTOR)
_BLUR = "avg_pool2d"
_BOUNDS = frozenset({"hardtanh", "clamp", "clip"})
_MOST_ATOMS = 1 << 22


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
        self._stored = set(model.state_dict())
        self._names = {id(tensor): name for name, tensor in self._tensors.items()}
        self._done: set[str] = set()
        self._layers: dict[str, Labelled] = {}
        self._used: set[str] = set()
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
        if name in LAYOUT_STEPS or node.target is torch.Tensor.unfold:
            value = self._moved(node, name)
        elif name in WEIGHT_STEPS and (product := product_of(node, self._tensors)) is not None:
            value = self._summed(node, product, step)
        elif name in WEIGHT_STEPS and shape is not None and is_blur(node, self._tensors):
            source = self._source(node)
            value = source if source is None else label_unary(self.labels, _BLUR, source, shape)
        elif name == "embedding":
            value = self._looked_up(node, step)
        elif name in ATTENTION_STEPS:
            value = self._attention.label(node, name, [self._of(a) for a in nodes_in(node.args)])
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
            tensor = self._tensors.get(name) if not node.meta.get("constant") else None
            if value.numel() == 1 or (tensor is not None and self._is_nothing(name)):
                value = torch.tensor(BLANK).expand(shape)
            elif (
                tensor is not None
                and (isinstance(tensor, nn.Parameter) or name in self._stored)
                and tensor.is_floating_point()
                and value.numel() <= _MOST_ATOMS
                and self._making is None
            ):
                value = self.labels.fresh(value.numel()).view(shape)
                self.loose[name] = (value, len(self._values))
                self._used.add(name)
        self._values[node] = value
        return value

    def _is_nothing(self, name: str) -> bool:
        """Whether a tensor that is not trained is zero (the bias that keys do not have, say)."""
        tensor = self._tensors[name]
        return not (isinstance(tensor, nn.Parameter) or tensor.is_meta or bool(tensor.any()))

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

    def _module(self, node: fx.Node, step: int) -> Any:
        shape, name = shape_of(node), str(node.target)
        module, kind = self._modules[name], node.meta.get("kind")
        if isinstance(module, nn.RNNBase) and (states := self._recurrent(node, module, step)):
            return states
        source = node.args[0] if node.args else None
        found = None
        values = self._of(source) if isinstance(source, fx.Node) else None
        if isinstance(values, Tensor) and kind == "weight":
            kernel = len(getattr(module, "kernel_size", ()))
            values = self._attention.along(values, values.dim() - 1 - kernel)
        if shape is not None and isinstance(values, Tensor):
            passed = self._passed(name, module, values, shape)
            if passed is not None:
                return passed
        if shape is not None and isinstance(values, Tensor) and kind in ("weight", "norm"):
            if name in self._layers:
                found = self._again(name, values)
            elif name not in self._done:
                before = len(self.labels.axes)
                label = label_weight if kind == "weight" else label_norm
                if self._used.isdisjoint(self._names[id(one)] for one in module.parameters()):
                    found = label(self.labels, module, self._names, values, step)
                if found is None:
                    del self.labels.axes[before:]
        own = {self._names[id(tensor)] for tensor in module.parameters()}
        if found is None and (name in self._done or own & self._used):
            for axis in self.labels.axes:
                if axis.tensor in own:
                    self.labels.pin(axis.atoms)
        self._done.add(name)
        self._used |= own
        return self._behind(node, name, found)

    def _recurrent(self, node: fx.Node, module: nn.RNNBase, step: int) -> Any:
        """A recurrent layer; None where nothing is known, and where it is called once more."""
        name = str(node.target)
        values = self._of(node.args[0]) if isinstance(node.args[0], fx.Node) else None
        own = {self._names[id(tensor)] for tensor in module.parameters()}
        started = len(node.args) > 1 or node.kwargs
        again = name in self._done or own & self._used or self._making is not None
        if not isinstance(values, Tensor) or started or again:
            return None
        found = label_recurrent(self.labels, module, self._names, values, step)
        if found is not None:
            self._done.add(name)
            self._used |= own
        return found

    def _again(self, name: str, values: Tensor) -> Labelled | None:
        """A layer that is called once more: its channels are those of its first call."""
        first = self._layers[name]
        dim = first.dim - first.rank + values.dim()
        if not 0 <= dim < values.dim() or values.shape[dim] != len(first.inputs):
            return None
        if uniform_along(values, dim):
            return None
        again = first._replace(dim=dim, rank=values.dim())
        if first.head is None:
            self.labels.tie(first.inputs, channels_along(self.labels, values, dim))
            return again
        heads = channels_in_heads(values, dim)
        if heads is None:
            return None
        again = again._replace(outputs=first.outputs[0])
        return in_every_head(self.labels, again, heads, varied(thin(values))[0])

    def _behind(self, node: fx.Node, name: str, found: Labelled | None) -> Tensor | None:
        """Labels of what a layer makes."""
        shape = shape_of(node)
        if found is None or shape is None or found.outputs.shape[-1] != shape[found.dim]:
            return self._unknown(node)
        self._layers[name] = found
        own = (found.head, found.dim)
        size = [shape[d] if d in own else 1 for d in range(len(shape))]
        return found.outputs.view(size).expand(shape)

    def _looked_up(self, node: fx.Node, step: int) -> Tensor | None:
        """Rows of a table, whose columns are the channels."""
        shape, table = shape_of(node), argument(node, 1, "weight")
        if shape is None or not isinstance(table, fx.Node) or table.op != "get_attr":
            return None
        name = str(table.target)
        if self._making is not None or not isinstance(self._tensors.get(name), nn.Parameter):
            return None
        if name in self._used:
            return None
        self._used.add(name)
        channels = self.labels.fresh(shape[-1])
        self.labels.axes.append(Axis(name, 1, "vector", channels, step))
        return channels.expand(shape)

    def _summed(self, node: fx.Node, product: ProductStep, step: int) -> Tensor | None:
        """A weight that is used as a function uses it."""
        values, name = self._of(product.source), product.weight.name
        if not isinstance(values, Tensor):
            return None
        if self._making is not None:
            shape = shape_of(node)
            still = shape is not None and not bool((values > FIXED).any())
            return torch.tensor(FIXED).expand(shape) if still and shape is not None else None
        if name in self._layers:
            found = self._again(name, values)
        elif name in self._used:
            return None
        else:
            self._used.add(name)
            found = label_product(self.labels, product.weight, values, step)
        bias = self._of(product.bias) if product.bias is not None else None
        if found is not None and bias is not None:
            if not isinstance(bias, Tensor) or tuple(bias.shape) != tuple(found.outputs.shape):
                return None
            self.labels.tie(found.outputs, bias)
        return self._behind(node, name, found)

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
        dim = over_positions(self.labels, module, values)
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
        shape = shape_of(node)
        if name != "pad":
            return label_moved(node, self._of, self._tensors)
        source = self._source(node)
        if source is None or shape is None:
            return None
        return label_padding(self.labels, source, node, shape)

    def _source(self, node: fx.Node) -> Tensor | None:
        first = node.args[0] if node.args else next(iter(node.kwargs.values()), None)
        value = self._of(first) if isinstance(first, fx.Node) else None
        return value if isinstance(value, Tensor) else None

    def _computed(self, node: fx.Node, name: str, shape: tuple[int, ...]) -> Tensor | None:
        """A step that computes with the entries."""
        if name in PAIRING_STEPS:
            operands = [
                item
                for item in nodes_in((*node.args, *node.kwargs.values()))
                if item.meta.get("floating", True)
            ]
            found = [self._of(item) for item in operands]
            if not found or not all(isinstance(value, Tensor) for value in found):
                return None
            table = self._attention.scaled(found, shape)
            if table is not None:
                return table
            if name in _FACTORS and len(found) == 2 and not any(map(self._attention.weighs, found)):
                step = len(self._values)
                scaled = label_factor(self.labels, self.loose, found, shape, step)
                if scaled is not None:
                    return scaled
            return label_pair(self.labels, name, found, shape)
        values = self._source(node)
        if values is None:
            return None
        if name == "normalize" and _only_along(values, argument(node, 2, "dim", 1)):
            # The length of each head is fixed, as by a norm over channels.
            self.labels.unsize(values)
            self.labels.spherical.append(torch.unique(thin(values)))
            return values
        if name in REDUCING_STEPS:
            return label_reduction(self.labels, node, values)
        odd = name in _BOUNDS and _is_symmetric(node)
        return label_unary(self.labels, "tanh" if odd else name, values, shape)


def _is_symmetric(node: fx.Node) -> bool:
    """Whether a step bounds what goes through it by the same number above and below."""
    default = {"min": -1.0, "max": 1.0} if step_name(node) == "hardtanh" else {}
    low, high = (
        argument(node, at, key, node.kwargs.get(f"{key}_val", default.get(key)))
        for at, key in enumerate(("min", "max"), 1)
    )
    numbers = isinstance(low, (int, float)) and isinstance(high, (int, float))
    return numbers and low == -high


def _only_along(values: Tensor, dim: Any) -> bool:
    """Whether channels lie along one dimension, and at most heads along others."""
    narrow = thin(values)
    along = varied(narrow)
    known = isinstance(dim, int) and dim % values.dim() in along and len(along) <= 2
    return known and len(torch.unique(narrow)) == narrow.numel() and bool((narrow > FIXED).all())
