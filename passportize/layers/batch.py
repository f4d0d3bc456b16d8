"""Rows of a batch: appending its private part, cutting it off, telling what is no batch."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

from passportize.errors import BranchMisuse
from passportize.utils.trees import (
    children_of,
    foreign_in,
    is_foreign,
    map_tensors,
    tensors_in,
)

__all__ = [
    "append_rows",
    "check_known",
    "count_rows",
    "cut_rows",
    "is_index",
    "is_packing",
    "other_samples",
    "unlike_rows",
]

Tree = TypeVar("Tree")


def append_rows(tensor: Tensor, rows: int, rehearsing: bool = False) -> Tensor:
    """``cat([x, x[:rows]])``: the private part of a batch behind the whole of it.

    Args:
        tensor: The whole, ``[batch, ...]``.
        rows: How many samples to append.
        rehearsing: Append :func:`other_samples`, which a maximum over a batch would notice, too.
    """
    return torch.cat([tensor, other_samples(tensor, rows) if rehearsing else tensor[:rows]])


def other_samples(tensor: Tensor, rows: int) -> Tensor:
    """Samples unlike the first ones: the last, in reverse, larger where they are no whole numbers.

    Args:
        tensor: A batch, ``[batch, ...]``.
        rows: How many of it.
    """
    last = tensor[len(tensor) - rows :].flip(0)
    return last * 1.5 if tensor.is_floating_point() else last


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
        BranchMisuse: The first dimension of a tensor does not count samples, or nobody knows what
            a part of the output holds.
    """
    check_known(output, "the output", advice)
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


def check_known(tree: Any, what: str, advice: str) -> None:
    """Refuse a tree with a part of a kind that nobody can take samples out of.

    Raises:
        BranchMisuse: There is one; the message names it.
    """
    foreign = next(foreign_in(tree), None)
    if foreign is not None:
        raise BranchMisuse(
            f"{what} holds a {type(foreign).__module__}.{type(foreign).__qualname__}, of which "
            "nobody knows how it holds samples (known are tensors, tuples, lists, mappings and "
            f"dataclasses); {advice}"
        )


def unlike_rows(tree: Any, rows: int) -> str:
    """What in a tree does not come one for each sample, so that nobody can cut it; empty if all.

    Numbers, strings and tensors without a dimension belong to the whole batch, unless they stand in
    a list. A list as long as the batch may be one for each sample, whatever its tensors look like.

    Args:
        tree: Targets, say.
        rows: Samples of the batch.
    """
    if isinstance(tree, list) and len(tree) == rows > 1:
        return "a list as long as the batch"
    if isinstance(tree, (tuple, list)) and any(
        isinstance(item, (str, int, float)) and not isinstance(item, bool) for item in tree
    ):
        return f"a {type(tree).__name__} of {type(tree[0]).__name__}"
    if isinstance(tree, Tensor):
        return f"a tensor of shape {tuple(tree.shape)}" if tree.dim() and len(tree) != rows else ""
    if is_foreign(tree):
        return f"a {type(tree).__module__}.{type(tree).__qualname__}"
    return next((found for item in children_of(tree) if (found := unlike_rows(item, rows))), "")


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
