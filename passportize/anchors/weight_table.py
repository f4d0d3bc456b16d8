"""Which steps of a graph are linear maps by a parameter, and which of its rows are meant."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import fx, nn

from passportize.anchors.step_back import step_back
from passportize.anchors.track import Track
from passportize.anchors.weight_parts import MERGED, UNKNOWN, Refusal, part_for, part_of
from passportize.layers.computed import can_compute
from passportize.signature.rows import anchor_width
from passportize.signature.site import AnchorPart
from passportize.tracing.graph import argument, shape_of, step_name
from passportize.tracing.operations import Kind, steps
from passportize.tracing.weight_layers import weight_shape
from passportize.utils.foreign import merged_later

__all__ = ["WeightTable"]

# With the number of dimensions that count positions.
_CONVOLUTIONS = {name: int(name[-2]) for name in steps(Kind.CONVOLUTION)}
_TRANSPOSED = {name: int(name[-2]) for name in steps(Kind.TRANSPOSED)}
_PRODUCTS = steps(Kind.MATMUL)


_OTHER_DIMENSION = "its channels are in another dimension than those of the norm"
_NO_PARAMETER = "it multiplies by a computed tensor, not by rows of a parameter"


class WeightTable:
    """The weights of one model, by the steps that use them.

    Attributes:
        notes: What had to be said about a weight (a parametrization, say).
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = dict(model.named_modules())
        parameters = dict(model.named_parameters())
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self._shapes = {
            name: tuple(parameter.shape)
            for name, parameter in parameters.items()
            if not nn.parameter.is_lazy(parameter)
        }
        self._merged = merged_later(model)
        self.notes: list[str] = []

    def has_weights(self, name: str) -> bool:
        """Whether a module owns a parameter of two or more dimensions."""
        module = self._modules.get(name)
        return module is None or any(p.dim() >= 2 for p in module.parameters())

    def whole(self, name: str, axis: str) -> AnchorPart | None:
        """All the rows of the weight of a linear layer or convolution, by the module's name."""
        module = self._modules[name]
        weight = None if name in self._merged else self._weight_name(name, module)
        if weight is None:
            return None
        part = part_of(module, weight, axis)
        return replace(part, channels=anchor_width(self._shapes[weight], part))

    def weight_of(self, node: fx.Node) -> str:
        """Name of the weight of a step that is one linear layer or convolution, else empty."""
        if node.op != "call_module" or node.meta.get("kind") != "weight":
            return ""
        own = self._modules[str(node.target)]._parameters.get("weight")
        return self._names.get(id(own), f"{node.target}.weight")

    # --- producers ----------------------------------------------------------------------------

    def producer(self, track: Track) -> AnchorPart | Refusal | None:
        """The rows of a weight that make the channels of a track, if its step is a linear map.

        Returns:
            The rows, or why there are none (nothing lies behind the step then either), or None
            where the step is no linear map.
        """
        node = track.node
        if node.op == "call_module" and str(node.target) in self._merged:
            return MERGED
        if node.op == "call_module" and node.meta.get("kind") == "weight":
            return self._module_part(track, node, "output")
        if node.op == "call_module":
            if node.meta.get("kind") == "norm" or not self.has_weights(str(node.target)):
                return None
            return UNKNOWN
        if node.op != "call_function":
            return None
        name, rank = step_name(node), len(shape_of(node) or ())
        if name == "getitem" and isinstance(node.args[0], fx.Node) and node.args[1] == 0:
            parent = node.args[0]
            if step_name(parent) == "multi_head_attention_forward" and track.dim == rank - 1:
                weight = argument(parent, 11, "out_proj_weight")
                return self._rows(weight, 0, track, "output")
            return None
        if name == "linear":
            if track.dim != rank - 1:
                return Refusal(_OTHER_DIMENSION)
            return self._rows(argument(node, 1, "weight"), 0, track, "output")
        if name in _CONVOLUTIONS or name in _TRANSPOSED:
            space = _CONVOLUTIONS.get(name) or _TRANSPOSED[name]
            if track.dim != rank - space - 1:
                return Refusal(_OTHER_DIMENSION)
            return self._convolution_part(track, node, "output")
        if name in _PRODUCTS:
            return self._product_part(track, node, rank)
        if name == "addmm" and track.dim == rank - 1:
            return self._rows(argument(node, 2, "mat2"), 1, track, "output")
        return None

    # --- consumers ----------------------------------------------------------------------------

    def consumer(self, track: Track, user: fx.Node) -> AnchorPart | Refusal | None:
        """The rows of a weight that read the channels of a track, if a user is a linear map.

        Returns:
            The rows, or why there are none, or None where the user is no linear map.
        """
        source, rank = track.node, len(shape_of(track.node) or ())
        if user.op == "call_module" and str(user.target) in self._merged:
            return MERGED
        if user.op == "call_module":
            if user.meta.get("kind") != "weight" or source not in user.args[:1]:
                return None
            return self._module_part(track, user, "input")
        if user.op != "call_function":
            return None
        name = step_name(user)
        if name == "multi_head_attention_forward" and track.dim == rank - 1:
            weight = argument(user, 5, "in_proj_weight")
            if weight is None and argument(user, 0, "query") is source:
                weight = user.kwargs.get("q_proj_weight")
            return self._rows(weight, 1, track, "input")
        if argument(user, 0, "input") is not source:
            return None
        if name == "linear" and track.dim == rank - 1:
            return self._rows(argument(user, 1, "weight"), 1, track, "input")
        if name in _CONVOLUTIONS or name in _TRANSPOSED:
            space = _CONVOLUTIONS.get(name) or _TRANSPOSED[name]
            if track.dim == rank - space - 1:
                return self._convolution_part(track, user, "input")
        if name in _PRODUCTS and track.dim == rank - 1:
            return self._rows(argument(user, 1, "other"), 0, track, "input")
        return None

    # --- rows ---------------------------------------------------------------------------------

    def _module_part(self, track: Track, node: fx.Node, axis: str) -> AnchorPart | Refusal:
        module = self._modules[str(node.target)]
        rank = len(shape_of(track.node) or ())
        if isinstance(module, nn.Linear):
            dim = rank - 1
            width = module.out_features if axis == "output" else module.in_features
        else:
            kernel: Any = module.kernel_size
            dim = rank - len(kernel) - 1
            width = module.out_channels if axis == "output" else module.in_channels
        if track.dim != dim:
            return Refusal(_OTHER_DIMENSION, self.weight_of(node))
        name = self._weight_name(str(node.target), module)
        if name is None:
            return Refusal("its weight is computed from other parameters")
        if track.stop > int(width):
            return Refusal(f"it has {width} channels, {track.stop} are needed", name)
        return part_for(track, part_of(module, name, axis))

    def _weight_name(self, name: str, module: nn.Module) -> str | None:
        """The weight of a module, a parameter or computed of some; None if nobody can say."""
        own = module._parameters.get("weight")
        if own is not None:
            found = self._names.get(id(own))
            return found if found in self._shapes else None
        # The weight itself is not asked for: computing it may change buffers (spectral norm).
        shape = weight_shape(module)
        if shape is None or not can_compute(module, "weight"):
            self._note(f"{name}.weight is computed from other parameters, so it binds no norm")
            return None
        computed = f"{name}.weight"
        self._shapes[computed] = shape
        self._note(f"{computed} is computed from other parameters, and bound as the layer uses it")
        return computed

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _convolution_part(self, track: Track, node: fx.Node, axis: str) -> AnchorPart | Refusal:
        transposed = step_name(node) in _TRANSPOSED
        groups = argument(node, 6, "groups", 1)
        weight = argument(node, 1, "weight")
        groups = groups if isinstance(groups, int) else 1
        if groups == 1:
            dim = int(transposed) if axis == "output" else 1 - int(transposed)
            return self._rows(weight, dim, track, axis)
        found = self._origin(weight, 0)
        if found is None or found[1] != 0 or found[2] != 0:
            return Refusal(_NO_PARAMETER)
        if self._shapes[found[0]] != tuple(shape_of(weight) or ()):
            # Mixed from several for each sample (CondConv): its groups are not the parameter's.
            return Refusal("its groups are not those of the parameter", found[0])
        part = AnchorPart(found[0], 0, axis, groups=groups, transposed=transposed)
        return part_for(track, part)

    def _product_part(self, track: Track, node: fx.Node, rank: int) -> AnchorPart | Refusal:
        left, right = argument(node, 0, "input"), argument(node, 1, "other")
        if step_name(node) == "rmatmul":
            left, right = right, left
        if track.dim == rank - 1 and _rank(right) == 2:
            return self._rows(right, 1, track, "output")
        if track.dim == rank - 2 and _rank(left) == 2:
            return self._rows(left, 0, track, "output")
        return Refusal("a product of two computed tensors")

    def _rows(self, weight: Any, dim: int, track: Track, axis: str) -> AnchorPart | Refusal:
        """Rows of the parameter from which a weight argument was made."""
        found = self._origin(weight, dim)
        if found is None:
            return Refusal(_NO_PARAMETER)
        name, where, start = found
        if name in self._merged or name.rpartition(".")[0] in self._merged:
            return MERGED
        shape = self._shapes[name]
        if where > 1 or start + track.stop > shape[where]:
            return Refusal(f"its rows do not lie in a parameter of shape {shape} as they are", name)
        # [out, in] is the usual layout: outputs in dimension 1 mean a transposed one.
        transposed = (where == 1) if axis == "output" else (where == 0)
        moved = track._replace(start=track.start + start)
        return part_for(moved, AnchorPart(name, 0, axis, transposed=transposed))

    def _origin(self, weight: Any, dim: int) -> tuple[str, int, int] | None:
        """Parameter, dimension and first row that a tensor was made from, or None."""
        if not isinstance(weight, fx.Node) or shape_of(weight) is None:
            return None
        shape = shape_of(weight) or ()
        level = [Track(weight, dim, 0, shape[dim])]
        for _ in range(12):
            following: list[Track] = []
            for track in level:
                node = track.node
                if node.op == "get_attr" and not node.meta.get("constant"):
                    name = str(node.target)
                    parameter = self._shapes.get(name, ())
                    if len(parameter) >= 2 and track.repeats == 1:
                        return name, track.dim, track.start
                elif node.op == "call_function":
                    following += step_back(track)
            level = following
        return None


def _rank(value: Any) -> int:
    return len(shape_of(value) or ()) if isinstance(value, fx.Node) else 0
