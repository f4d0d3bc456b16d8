"""RMSNorms by what they compute (Zhang and Sennrich, NeurIPS 2019), whatever their class is called.

Transformers have one class for each family of models. Those of Gemma multiply with one plus their
parameter.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["offset_of"]

_OFFSETS = (0.0, 1.0)


def offset_of(norm: nn.Module) -> float | None:
    """What is added to the parameter of an RMSNorm; None where a module is no such norm.

    Args:
        norm: A module with one vector of parameters and nothing else; it is called with noise,
            without its hooks.
    """
    weight = norm._parameters.get("weight")
    alone = [name for name, _ in norm.named_parameters()] == ["weight"]
    if weight is None or not alone or weight.dim() != 1 or weight.is_meta:
        return None
    if [*norm.buffers(), *norm.children()] or not weight.is_floating_point():
        return None
    noise = torch.randn(3, len(weight), generator=torch.Generator().manual_seed(0)).to(weight)
    with torch.no_grad():
        try:
            found = norm.forward(noise)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
            return None
    if not isinstance(found, Tensor) or found.shape != noise.shape:
        return None
    spread = 1e-2 if weight.element_size() < 4 else 1e-4
    size = noise.double().square().mean(1, keepdim=True)
    numbers = [value for value in vars(norm).values() if isinstance(value, float)]
    for offset in _OFFSETS:
        factors = weight.detach().double() + offset
        for eps in (*numbers, 0.0):
            expected = noise.double() * (size + eps).rsqrt() * factors
            if torch.allclose(found.double(), expected, spread, spread):
                return offset
    return None
