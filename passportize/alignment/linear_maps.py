"""What a linear step computes, and several in a row: a weight and a shift, multiplied out.

Where a layer pads its input behind a shift, the sum at the border is another one than inside; here
the inside counts, for weights are compared and nothing is run.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from passportize.tracing.linear_chains import is_frozen_norm

__all__ = [
    "layer_of",
    "stepping",
    "LinearMap",
    "as_convolution",
    "dimensions_of",
    "map_of",
    "product",
    "side_by_side",
]


@dataclass(frozen=True, eq=False)
class LinearMap:
    """A linear map of channels, with a kernel over positions.

    Attributes:
        weight: Float64 ``[out, in / groups, *kernel]``; a kernel of one entry has no dimensions.
        groups: Groups of channels.
        shift: What is added, float64 ``[out]``.
    """

    weight: Tensor
    groups: int
    shift: Tensor

    @property
    def inputs(self) -> int:
        """Number of channels that it reads."""
        return self.weight.shape[1] * self.groups

    @property
    def outputs(self) -> int:
        """Number of channels that it makes."""
        return self.weight.shape[0]

    @property
    def kernel(self) -> tuple[int, ...]:
        """Size of the kernel, empty where it is one entry."""
        return tuple(self.weight.shape[2:])

    @property
    def diagonal(self) -> bool:
        """Whether it multiplies each channel with a number."""
        return self.groups == self.inputs == self.outputs and not self.kernel

    def of_constant(self, values: Tensor) -> Tensor:
        """What it makes of one number in each channel, ``[out]``."""
        weight = self.weight.reshape(*self.weight.shape[:2], -1).sum(2)
        grouped = weight.reshape(self.groups, -1, weight.shape[1])
        return (grouped @ values.reshape(self.groups, -1, 1)).reshape(-1) + self.shift

    def dense(self) -> Tensor:
        """The weight without groups, ``[out, in, *kernel]``."""
        if self.groups == 1:
            return self.weight
        whole = self.weight.new_zeros(self.outputs, self.inputs, *self.kernel)
        made, read = self.outputs // self.groups, self.inputs // self.groups
        for group in range(self.groups):
            rows = slice(group * made, (group + 1) * made)
            whole[rows, group * read : (group + 1) * read] = self.weight[rows]
        return whole

    def in_groups(self, groups: int) -> LinearMap | None:
        """The same map with other groups; None if channels of different groups meet."""
        if groups == self.groups:
            return self
        if self.outputs % groups or self.inputs % groups:
            return None
        dense = self.dense()
        made, read = self.outputs // groups, self.inputs // groups
        parts = [
            dense[group * made : (group + 1) * made, group * read : (group + 1) * read]
            for group in range(groups)
        ]
        weight = torch.cat(parts)
        lost = float(dense.square().sum() - weight.square().sum())
        if lost > 1e-6 * max(float(dense.square().sum()), 1e-300):
            return None
        return LinearMap(weight, groups, self.shift)

    def is_identity(self, tolerance: float = 1e-3) -> bool:
        """Whether nothing happens, up to a share of it."""
        if self.inputs != self.outputs or self.kernel:
            return False
        if self.diagonal:
            apart = self.weight - 1.0
        else:
            apart = self.dense() - torch.eye(self.inputs, dtype=self.weight.dtype)
        return float(max(apart.abs().max(), self.shift.abs().max())) <= tolerance


def map_of(module: nn.Module) -> LinearMap:
    """What a linear layer, a convolution or a BatchNorm in evaluation does."""
    step: Any = module
    if is_frozen_norm(module):
        variance = step.running_var.detach().double().cpu()
        factor = (variance + step.eps).rsqrt()
        if step.weight is not None:
            factor = factor * step.weight.detach().double().cpu()
        shift = -step.running_mean.detach().double().cpu() * factor
        if step.bias is not None:
            shift = shift + step.bias.detach().double().cpu()
        return LinearMap(factor[:, None], len(factor), shift)
    weight = step.weight.detach().double().cpu()
    if math.prod(weight.shape[2:]) == 1:
        weight = weight.flatten(1)
    bias = step.bias
    shift = weight.new_zeros(len(weight)) if bias is None else bias.detach().double().cpu()
    return LinearMap(weight, int(getattr(module, "groups", 1)), shift)


def dimensions_of(norm: nn.Module) -> int:
    """Dimensions of the positions that a BatchNorm is called with; 2 for classes of others."""
    kinds: dict[type, int] = {nn.BatchNorm1d: 1, nn.BatchNorm3d: 3}
    return kinds.get(type(norm), 2)


@torch.no_grad()
def as_convolution(norm: nn.Module) -> nn.Module:
    """A BatchNorm in evaluation as a 1x1 depthwise convolution; activations in it are left out."""
    step, own = map_of(norm), norm
    kind: Any = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dimensions_of(norm)]
    mean: Any = own.running_mean
    like = {"device": mean.device, "dtype": mean.dtype}
    # No numbers are drawn for values that are written over.
    layer: Any = nn.utils.skip_init(  # type: ignore[no-untyped-call]
        kind, step.outputs, step.outputs, 1, groups=step.outputs, **like
    )
    layer.weight.copy_(step.weight.reshape(layer.weight.shape))
    layer.bias.copy_(step.shift)
    module: nn.Module = layer
    return module.train(norm.training)


def stepping(layers: Sequence[nn.Module]) -> int:
    """Which of several layers in a row steps over positions; the last one where none does."""
    for number, layer in enumerate(layers):
        strides = getattr(layer, "stride", ())
        if any(stride != 1 for stride in strides):
            return number
    kernels = [number for number, layer in enumerate(layers) if map_of(layer).kernel]
    return kernels[0] if kernels else len(layers) - 1


@torch.no_grad()
def layer_of(like: nn.Module, step: LinearMap) -> nn.Module:
    """A layer that steps over positions as another one does, and computes a map."""
    layer: Any = copy.deepcopy(like)
    kernel = layer.weight.shape[2:]
    weight = step.weight.reshape(step.outputs, step.weight.shape[1], *kernel)
    layer.weight = nn.Parameter(weight.to(layer.weight))
    layer.bias = nn.Parameter(step.shift.to(layer.weight))
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = step.outputs, step.inputs
    else:
        layer.out_channels, layer.in_channels = step.outputs, step.inputs
        layer.groups = step.groups
    module: nn.Module = layer
    return module


def side_by_side(maps: Sequence[LinearMap]) -> LinearMap:
    """One map with the outputs of several that read the same, one after the other."""
    weight = torch.cat([one.dense() for one in maps])
    return LinearMap(weight, 1, torch.cat([one.shift for one in maps]))


def product(maps: Sequence[LinearMap]) -> LinearMap | None:
    """Several in a row as one; None where two of them have a kernel, or they do not fit."""
    found = maps[0]
    for following in maps[1:]:
        joined = _joined(found, following)
        if joined is None:
            return None
        found = joined
    return found


def _joined(first: LinearMap, second: LinearMap) -> LinearMap | None:
    if first.outputs != second.inputs or (first.kernel and second.kernel):
        return None
    groups = second.groups
    shift = second.of_constant(first.shift)
    if second.diagonal:
        factors = second.weight.reshape(-1, *[1] * (first.weight.dim() - 1))
        return LinearMap(first.weight * factors, first.groups, shift)
    if first.diagonal:
        sizes = groups, second.outputs // groups, second.inputs // groups
        kernel = [1] * len(second.kernel)
        scaled = second.weight.reshape(*sizes, *second.kernel) * first.weight.reshape(
            groups, 1, -1, *kernel
        )
        return LinearMap(scaled.reshape(second.weight.shape), groups, shift)
    if groups == 1 and not second.kernel and first.groups == first.inputs == first.outputs:
        # A kernel for each channel, and a matrix behind it or in front of it.
        mixed = second.weight.reshape(second.outputs, second.inputs, 1)
        weight = mixed * first.weight.reshape(1, first.outputs, -1)
        return LinearMap(weight.reshape(*weight.shape[:2], *first.kernel), 1, shift)
    if first.groups == 1 and not first.kernel and groups == second.inputs == second.outputs:
        weight = second.weight.reshape(second.outputs, 1, -1) * first.weight[:, :, None]
        return LinearMap(weight.reshape(*weight.shape[:2], *second.kernel), 1, shift)
    if first.groups != groups:
        first, second = (LinearMap(one.dense(), 1, one.shift) for one in (first, second))
        groups = 1
    kernel_sizes = first.kernel or second.kernel
    left = second.weight.reshape(groups, -1, *second.weight.shape[1:2], max(1, _size(second)))
    right = first.weight.reshape(groups, -1, *first.weight.shape[1:2], max(1, _size(first)))
    joined = torch.einsum("gomk,gmil->goikl", left, right)
    weight = joined.reshape(second.outputs, right.shape[2], *kernel_sizes)
    return LinearMap(weight, groups, shift)


def _size(step: LinearMap) -> int:
    return math.prod(step.kernel)
