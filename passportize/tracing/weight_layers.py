"""Which modules are linear maps by a weight, and how the weight is laid out."""

from __future__ import annotations

import math

from torch import nn
from torch.jit import ScriptModule
from torch.nn.utils.parametrize import type_before_parametrizations

from passportize.utils.foreign import STANDARDISED_CONVOLUTIONS
from passportize.utils.names import describe_type

__all__ = [
    "expert_shape_of",
    "is_weight_module",
    "matrix_shape",
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


def matrix_shape(module: nn.Module) -> tuple[int, ...] | None:
    """Shape of the ``weight`` of a layer if its first dimension counts outputs, else None.

    Besides convolutions and linear layers of torch those of others (PyTorch Geometric, say): a
    layer that says how many inputs and outputs it has, and whose weight is ``[out, in]``.

    Args:
        module: Not a lazy one that has seen no data yet.
    """
    if isinstance(module, ScriptModule):
        return None
    shape = weight_shape(module)
    weight = module._parameters.get("weight")
    if weight is None:
        return shape
    if shape is not None or expert_shape_of(module):
        return tuple(weight.shape)
    for front, back in (("out_channels", "in_channels"), ("out_features", "in_features")):
        sizes = (getattr(module, front, None), getattr(module, back, None))
        if tuple(weight.shape) == sizes:
            return tuple(weight.shape)
    return None


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
