"""The rows of a weight tensor that answer for the channels of a norm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from passportize.errors import AnchorNotFound
from passportize.signature.site import AnchorPart
from passportize.utils.precision import at_least_float32

__all__ = [
    "added_to_rows",
    "anchor_fan_in",
    "anchor_rows",
    "anchor_width",
    "row_positions",
]


def _layout(shape: Sequence[int], part: AnchorPart) -> tuple[int, int, int]:
    """Rows that the weight has along the axis, entries of each, and what lies behind dim 1."""
    groups = part.groups
    if part.expert_shape:
        if len(shape) != 2 or math.prod(part.expert_shape) != shape[1]:
            raise AnchorNotFound(
                f"{part.weight}: a weight of shape {tuple(shape)} is no list of flattened kernels "
                f"of shape {part.expert_shape}. Is it the weight of another model?"
            )
        rows, entries, kernel = _layout(part.expert_shape, replace(part, expert_shape=()))
        return rows, entries * shape[0], kernel
    if len(shape) < 2 or groups < 1 or shape[0] % groups:
        raise AnchorNotFound(
            f"{part.weight}: a weight of shape {tuple(shape)} with {groups} groups has no rows to "
            "bind a norm to. Name another weight for it in anchors="
        )
    kernel = math.prod(shape[2:])
    # Whether dim 0 lists the rows themselves (else they lie in dim 1, one set for each group).
    in_front = (part.axis == "output") != part.transposed
    if in_front:
        return shape[0], shape[1] * kernel, kernel
    return shape[1] * groups, shape[0] // groups * kernel, kernel


def anchor_width(shape: Sequence[int], part: AnchorPart) -> int:
    """How many rows a weight has along the axis of a part (its output or input channels)."""
    return _layout(shape, part)[0]


def anchor_fan_in(shape: Sequence[int], part: AnchorPart) -> int:
    """Entries of one row of :func:`anchor_rows`.

    Args:
        shape: Shape of the weight.
        part: The part.
    """
    return _layout(shape, part)[1] * part.repeats


def anchor_rows(weight: Tensor, part: AnchorPart, window: slice | None = None) -> Tensor:
    """One row of weights for every channel of a part.

    Row ``c`` holds the entries of the weight that produce channel ``c`` (axis ``"output"``) or
    consume it (``"input"``), in the order of the weight's dimensions; with ``repeats`` the rows
    ``start + j * channels + c`` lie side by side, and so do the rows of the experts of a mixture,
    expert by expert. The result is differentiable, and a view of the weight where its layout
    allows and nothing is taken from it (``centred``, ``less_mean_row``; then it is in at least
    float32).

    Args:
        weight: ``[out, in / groups, ...]``, or ``[in, out / groups, ...]`` for a transposed layout,
            or ``[experts, numbers]`` of flattened kernels.
        part: Which rows.
        window: Which entries of each row; all by default.

    Returns:
        Tensor ``[channels, fan_in]``, or as many entries as the window has.

    Raises:
        AnchorNotFound: The weight has fewer rows than the part asks for.
    """
    rows, _, _ = _layout(weight.shape, part)
    stop = part.start + part.channels * part.repeats
    if part.channels < 1 or part.start < 0 or stop > rows:
        raise AnchorNotFound(
            f"{part.weight}: rows {part.start} to {stop - 1} are asked for, but a weight of shape "
            f"{tuple(weight.shape)} has {rows} along its {part.axis} axis. Is it the weight of "
            "another model?"
        )
    if part.less_mean_row:
        chosen = at_least_float32(anchor_rows(weight, replace(part, less_mean_row=False), window))
        return chosen - chosen.mean(0, keepdim=True)
    if window is not None:
        whole = anchor_rows(weight, part)
        return whole if window == slice(0, whole.shape[1]) else whole[:, window]
    if part.centred:
        return anchor_rows(_centred(weight), replace(part, centred=False))
    if part.expert_shape:
        single = replace(part, expert_shape=())
        kernels = weight.reshape(-1, *part.expert_shape)
        return torch.cat([anchor_rows(kernel, single) for kernel in kernels], dim=1)
    if (part.axis == "output") != part.transposed:
        chosen = _rows(weight, part.start, stop)
    else:
        groups = part.groups
        # [groups, rows of dim 0 in a group, rows of dim 1, kernel] -> [groups * dim 1, ...]
        split = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        turned = split.transpose(1, 2).reshape(rows, -1) if groups > 1 else split[0].transpose(0, 1)
        chosen = _rows(turned, part.start, stop)
    if part.repeats == 1:
        return chosen
    return torch.cat(torch.split(chosen, part.channels), dim=1)


def row_positions(weight: Tensor, part: AnchorPart) -> Tensor:
    """Where the entries of :func:`anchor_rows` lie in the flattened weight.

    Args:
        weight: The weight.
        part: Which rows.

    Returns:
        int64 ``[channels, fan_in]``.
    """
    numbers = torch.arange(weight.numel(), device=weight.device).view(weight.shape)
    return anchor_rows(numbers, replace(part, centred=False, less_mean_row=False))


def added_to_rows(
    weight: Tensor,
    part: AnchorPart,
    added: Tensor,
    window: slice | None = None,
    picked: Tensor | None = None,
) -> Tensor:
    """A copy of a weight with something added to rows, computed in float64.

    What is taken from rows before they are read (``centred``, ``less_mean_row``) stays in it.

    Args:
        weight: The weight.
        part: Which rows.
        added: Float64, ``[channels, entries]`` or what is broadcast to that.
        window: Which entries of each row; all by default.
        picked: To which rows, int64; all by default.
    """
    positions = row_positions(weight, part)
    positions = positions if picked is None else positions[picked]
    flat = weight.double().reshape(-1)
    flat[positions if window is None else positions[:, window]] += added
    return flat.view(weight.shape).to(weight.dtype)


def _rows(weight: Tensor, start: int, stop: int) -> Tensor:
    # The gradient of a slice is a tensor of zeros to copy into, also where all is taken.
    chosen = weight if stop - start == len(weight) else weight[start:stop]
    return chosen.reshape(stop - start, -1)


def _centred(weight: Tensor) -> Tensor:
    """A weight of which every kernel has the mean zero."""
    kernels = at_least_float32(weight)
    return kernels - kernels.mean(tuple(range(1, kernels.dim())), keepdim=True)
