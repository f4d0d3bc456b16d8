"""Rows of a batch: appending its private part, cutting it off, telling what is no batch."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

from passportize.errors import BranchMisuse
from passportize.utils.trees import map_tensors, tensors_in

__all__ = ["append_rows", "count_rows", "cut_rows", "is_index", "is_packing"]

Tree = TypeVar("Tree")


def append_rows(tensor: Tensor, rows: int) -> Tensor:
    """``cat([x, x[:rows]])``: the private part of a batch behind the whole of it."""
    return torch.cat([tensor, tensor[:rows]])


def count_rows(arguments: Any, advice: str) -> int:
    """Length of a batch: that of the first tensor with any dimension.

    Args:
        arguments: What a model is called with.
        advice: What to do where there is none.

    Raises:
        BranchMisuse: There is no such tensor.
    """
    for tensor in tensors_in(arguments):
        if tensor.dim():
            return int(tensor.shape[0])
    raise BranchMisuse(
        "the model's input holds no tensor with a batch dimension, so the private part of the "
        f"batch cannot be appended; {advice}"
    )


def cut_rows(output: Tree, public: int, private: int, advice: str) -> tuple[Tree, Tree]:
    """The output of a joint pass in two: the public branch's rows and the private one's.

    Args:
        output: A nest of tensors; scalars belong to both parts.
        public: Samples of the public branch.
        private: Samples of the private branch, behind them.
        advice: What to do where that does not fit.

    Raises:
        BranchMisuse: The first dimension of a tensor does not count samples.
    """
    for tensor in tensors_in(output):
        if tensor.dim() and tensor.shape[0] != public + private:
            raise BranchMisuse(
                f"an output of shape {tuple(tensor.shape)} does not have the joint batch of "
                f"{public} public and {private} private samples as its first dimension; {advice}"
            )
    return (
        map_tensors(lambda t: t[:public] if t.dim() else t, output),
        map_tensors(lambda t: t[public:] if t.dim() else t, output),
    )


def is_index(tensor: Tensor) -> bool:
    """Whether a tensor is a vector of whole numbers."""
    return tensor.dim() == 1 and not (
        tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool
    )


def is_packing(tensor: Tensor, rows: int) -> bool:
    """Whether a vector seems to say which of several graphs each of so many nodes belongs to.

    That is 0, 0, 0, 1, 1, 2, ...: in order, no number left out, at least one twice.
    """
    if not is_index(tensor) or not len(tensor) == rows > 1:
        return False
    steps = tensor.diff()
    in_order = ((steps == 0) | (steps == 1)).all() & (steps == 0).any()
    return bool((tensor[0] == 0) & (tensor[-1] > 0) & in_order)
