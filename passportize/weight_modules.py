"""Which modules are linear maps by a weight."""

from __future__ import annotations

from torch import nn

__all__ = ["is_weight_module", "owns_weight", "weight_shape"]


def is_weight_module(module: nn.Module) -> bool:
    """Whether a module is a linear layer or a convolution, of torch or derived from torch's."""
    return isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))


def owns_weight(module: nn.Module) -> bool:
    """Whether a module is a linear layer or convolution, torch's or anybody's with that layout."""
    if is_weight_module(module):
        return True
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag, nn.Bilinear, nn.LayerNorm, nn.RMSNorm)):
        return False
    weight = module._parameters.get("weight")
    if weight is None or next(module.children(), None) is not None:
        return False
    return nn.parameter.is_lazy(weight) or weight.dim() >= 2


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
