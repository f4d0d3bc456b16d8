"""Tensors that are kept in another way than as rows of numbers, as such rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["LARGEST_DENSE", "dense", "why_not_dense"]

LARGEST_DENSE = 2**30
"""Bytes that a sparse tensor may have as a dense one."""

_SPARSE = {
    torch.sparse_coo,
    torch.sparse_csr,
    torch.sparse_csc,
    torch.sparse_bsr,
    torch.sparse_bsc,
}


def why_not_dense(tensor: Tensor) -> str:
    """Why a tensor cannot be had as a dense one; empty if it can."""
    if tensor.is_meta:
        return "is on the meta device and has no values"
    if tensor.is_nested:
        return "is a nested tensor"
    size = math.prod(tensor.shape) * tensor.element_size()
    if tensor.layout in _SPARSE and size > LARGEST_DENSE:
        return f"is sparse and would take {size:,} bytes as a dense tensor"
    if tensor.layout not in (torch.strided, *_SPARSE):
        return f"has the layout {tensor.layout}"
    return ""


def dense(tensor: Tensor) -> Tensor:
    """A tensor as a dense one: itself, or a copy of a sparse or quantised one.

    Raises:
        ValueError: It cannot be had so; with the reason.
    """
    reason = why_not_dense(tensor)
    if reason:
        raise ValueError(reason)
    if tensor.is_quantized or type(tensor).__module__.startswith("torchao."):
        return tensor.dequantize()
    return tensor if tensor.layout == torch.strided else tensor.to_dense()
