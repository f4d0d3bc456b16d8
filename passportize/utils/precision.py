"""In which precision tensors are computed with."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["at_least_float32", "on_cpu_float64"]


def at_least_float32(tensor: Tensor) -> Tensor:
    """Integers and short floating types as float32; float64 and complex stay as they are."""
    if tensor.dtype is torch.float64 or tensor.is_complex():
        return tensor
    return tensor.to(torch.float32)


def on_cpu_float64(tensor: Tensor) -> Tensor:
    """A tensor on the CPU as float64, without a gradient."""
    return tensor.detach().to("cpu", torch.float64)
