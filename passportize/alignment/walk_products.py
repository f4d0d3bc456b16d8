"""Weights that a forward pass uses by itself rather than through a layer: ``F.linear(x, w, b)``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, fx, nn

from passportize.alignment.walk_layers import Product
from passportize.tracing.graph import argument, step_name

__all__ = ["WEIGHT_STEPS", "ProductStep", "is_blur", "product_of"]

_CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"})
_PLAIN = frozenset({"matmul", "mm"})
WEIGHT_STEPS = _CONVOLUTIONS | _PLAIN | {"linear", "addmm"}


@dataclass(frozen=True)
class ProductStep:
    """A step that sums channels by a weight.

    Attributes:
        source: What it reads.
        weight: The weight.
        bias: What is added; None if nothing is.
    """

    source: fx.Node
    weight: Product
    bias: fx.Node | None


def is_blur(node: fx.Node, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a step puts the same fixed kernel over every channel: a pool with weights.

    Args:
        node: The step, one of :data:`WEIGHT_STEPS` by name.
        tensors: Parameters and buffers of the model, by name.
    """
    target = step_name(node)
    weight = argument(node, 1, "weight")
    if target not in _CONVOLUTIONS or not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return False
    kernel = tensors.get(str(weight.target))
    if kernel is None or isinstance(kernel, nn.Parameter) or kernel.is_meta:
        return False
    if isinstance(argument(node, 2, "bias"), fx.Node):
        return False
    alone = argument(node, 6, "groups", 1) == len(kernel) and kernel.shape[1] == 1
    return alone and bool((kernel == kernel[:1]).all())


def product_of(node: fx.Node, tensors: Mapping[str, Tensor]) -> ProductStep | None:
    """A step as a product with a weight; None where its second factor is no parameter.

    Args:
        node: The step, one of :data:`WEIGHT_STEPS` by name.
        tensors: Parameters and buffers of the model, by name.
    """
    target = step_name(node)
    if target == "addmm":
        bias, source, weight = (
            argument(node, at, key) for at, key in enumerate(("input", "mat1", "mat2"))
        )
        if node.kwargs.get("beta", 1) != 1 or node.kwargs.get("alpha", 1) != 1:
            return None
    else:
        plain = target in _PLAIN
        source = argument(node, 0, "input")
        weight = argument(node, 1, "other" if plain else "weight")
        bias = None if plain else argument(node, 2, "bias")
    if not isinstance(weight, fx.Node) or weight.op != "get_attr" or weight.meta.get("constant"):
        return None
    name = str(weight.target)
    parameter = tensors.get(name)
    if not isinstance(source, fx.Node) or not isinstance(parameter, nn.Parameter):
        return None
    if bias is not None and not isinstance(bias, fx.Node):
        return None
    kernel = int(target[4]) if target in _CONVOLUTIONS else 0
    if parameter.dim() != 2 + kernel:
        return None
    groups = argument(node, 6, "groups", 1) if kernel else 1
    if not isinstance(groups, int):
        return None
    transposed = target in _PLAIN or target == "addmm"
    shape = tuple(parameter.shape)
    return ProductStep(source, Product(name, shape, kernel, groups, transposed), bias)
