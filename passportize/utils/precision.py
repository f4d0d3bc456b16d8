"""In which precision tensors are computed with."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["at_least_float32", "on_cpu_float64"]


def at_least_float32(tensor: Tensor, copy: bool = False) -> Tensor:
    """Integers and short floating types as float32; float64 and complex stay as they are.

    Args:
        tensor: The tensor.
        copy: Whether what comes back is a copy in any case.
    """
    kept = tensor.dtype is torch.float64 or tensor.is_complex()
    return tensor.to(tensor.dtype if kept else torch.float32, copy=copy)


def on_cpu_float64(tensor: Tensor) -> Tensor:
    """A tensor on the CPU as float64, without a gradient."""
    return tensor.detach().to("cpu", torch.float64)
