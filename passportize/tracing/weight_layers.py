"""Which modules are linear maps by a weight, and how the weight is laid out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import nn
from torch.jit import ScriptModule
from torch.nn.utils.parametrize import type_before_parametrizations

from passportize.utils.foreign import STANDARDISED_CONVOLUTIONS
from passportize.utils.names import describe_type

__all__ = [
    "Matrix",
    "expert_shape_of",
    "is_weight_module",
    "matrices_of",
    "owns_weight",
    "standardises_weight",
    "weight_shape",
]


def standardises_weight(module: nn.Module) -> bool:
    """Whether a module standardises its weight, so that a constant in a kernel means nothing."""
    return describe_type(type_before_parametrizations(module)) in STANDARDISED_CONVOLUTIONS


def is_weight_module(module: nn.Module) -> bool:
    """Whether a module is a linear layer or a convolution, of torch or derived from torch's.

    Convolutions by a mixture of kernels (CondConv) count as well.
    """
    return isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) or bool(expert_shape_of(module))


def expert_shape_of(module: nn.Module) -> tuple[int, ...]:
    """Shape of one kernel of a convolution by a mixture of kernels; empty for other modules.

    Such a module (``timm.layers.CondConv2d``, say) has ``weight``, ``[experts, numbers]``, and says
    with ``weight_shape`` how the numbers of one expert are laid out.
    """
    if isinstance(module, ScriptModule):
        return ()
    weight = module._parameters.get("weight")
    shape = getattr(module, "weight_shape", None)
    if weight is None or nn.parameter.is_lazy(weight) or weight.dim() != 2:
        return ()
    if not isinstance(shape, tuple) or not all(type(size) is int for size in shape):
        return ()
    return shape if len(shape) > 2 and math.prod(shape) == weight.shape[1] else ()


def owns_weight(module: nn.Module) -> bool:
    """Whether a module is a linear layer or convolution, torch's or anybody's with that layout.

    Never one of TorchScript, which nobody can change.
    """
    if isinstance(module, ScriptModule):
        return False
    if is_weight_module(module):
        return True
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag, nn.Bilinear, nn.LayerNorm, nn.RMSNorm)):
        return False
    weight = module._parameters.get("weight")
    if weight is None or next(module.children(), None) is not None:
        return False
    return nn.parameter.is_lazy(weight) or weight.dim() >= 2


class Matrix(NamedTuple):
    """A matrix that a layer multiplies its input with, or a stack of them.

    Attributes:
        attribute: Its name in the layer.
        shape: Its shape.
        transposed: Whether outputs are counted by its second dimension, and not by its first.
        axis: ``"input"`` where its rows are what consumes an input, since the second dimension
            counts inputs and the outputs come last.
    """

    attribute: str
    shape: tuple[int, ...]
    transposed: bool = False
    axis: str = "output"


def matrices_of(module: nn.Module) -> list[Matrix]:
    """The matrices of a layer, those of its children not among them.

    Besides convolutions and linear layers of torch those of others (PyTorch Geometric, say): a
    layer that says how many inputs and outputs it has, and whose ``weight`` is ``[out, in]`` or
    ``[in, out]`` or a stack of such matrices (one for each relation of RGCN, say). And what
    recurrent layers and attention of torch keep as plain parameters.

    Args:
        module: Not a lazy one that has seen no data yet.
    """
    if isinstance(module, ScriptModule):
        return []
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return _named(module, lambda name: name.startswith("weight_"))
    if isinstance(module, nn.MultiheadAttention):
        return _named(module, lambda name: name.endswith("proj_weight"))
    shape = weight_shape(module)
    weight = module._parameters.get("weight")
    if weight is None:
        return [] if shape is None else [Matrix("weight", shape, _transposed(module))]
    if shape is not None or expert_shape_of(module):
        return [Matrix("weight", tuple(weight.shape), _transposed(module))]
    size = tuple(weight.shape)
    for front, back in (("out_channels", "in_channels"), ("out_features", "in_features")):
        sizes = (getattr(module, front, None), getattr(module, back, None))
        if size == sizes:
            return [Matrix("weight", size)]
        if size == sizes[::-1]:
            return [Matrix("weight", size, transposed=True)]
        # One row of a stack takes in the entries of all its matrices.
        if len(size) == 3 and size[1:] == sizes[::-1]:
            return [Matrix("weight", size, axis="input")]
        if len(size) == 3 and size[1:] == sizes:
            return [Matrix("weight", size, transposed=True)]
    return []


def _named(module: nn.Module, fits: Callable[[str], bool]) -> list[Matrix]:
    return [
        Matrix(name, tuple(parameter.shape))
        for name, parameter in module._parameters.items()
        if parameter is not None and fits(name)
    ]


def _transposed(module: nn.Module) -> bool:
    return bool(getattr(module, "transposed", False))


def weight_shape(module: nn.Module) -> tuple[int, ...] | None:
    """Shape that the weight of a linear layer or convolution must have."""
    if isinstance(module, nn.Linear):
        return (module.out_features, module.in_features)
    if isinstance(module, nn.modules.conv._ConvNd):
        front, back = module.out_channels, module.in_channels
        if module.transposed:
            front, back = back, front
        return (front, back // module.groups, *module.kernel_size)
    return None
