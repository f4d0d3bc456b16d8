"""Values for the released layers of a stretch, from what the steps of a model compute together.

Norms of such a stretch are multiplied into the layers before them, in both models, for their own
factors and statistics are not to be had from a product. Of several layers only the product is
known. It is parted by its singular values, up to a matrix on the channels in between: what that is
an alignment finds, or nothing does.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from passportize.alignment.linear_maps import LinearMap, map_of, product
from passportize.alignment.stretches import Stretch

__all__ = ["own_values", "values_of"]

LayerValues = dict[str, LinearMap]
"""What each layer computes, by the name of its module; norms that stand alone among them."""


def values_of(stretch: Stretch, whole: LinearMap, joined: bool = False) -> LayerValues | None:
    """What the released layers of a stretch have to compute, so that together they compute a map.

    Args:
        stretch: Not one that is the same in both models.
        whole: The map.
        joined: Whether several layers are to stay one, with the name of the first.

    Returns:
        By names of released modules; empty where a product says too little. None where the map is
        none that such layers can compute.
    """
    if stretch.beside:
        return _parts(stretch, whole)
    if len(stretch.layers) > 1:
        if joined:
            return {stretch.layers[0].name: whole}
        pair = _pair(stretch, whole) if len(stretch.layers) == 2 else None
        if pair is None:
            return {}
        first, second = stretch.layers
        nothing = torch.zeros(len(pair[0]), dtype=torch.float64)
        return {
            first.name: LinearMap(pair[0], first.groups, nothing),
            second.name: LinearMap(pair[1], second.groups, whole.shift),
        }
    layer = stretch.layers[0] if stretch.layers else stretch.released[0]
    fitting = whole.in_groups(whole.inputs if layer.separate else layer.groups)
    return None if fitting is None else {layer.name: fitting}


def own_values(
    stretch: Stretch, modules: Mapping[str, nn.Module], joined: bool = False
) -> LayerValues:
    """The same of the released model itself, each layer with the norms behind it.

    Args:
        stretch: The stretch.
        modules: The released model's, by name.
        joined: As in :func:`values_of`.
    """
    if stretch.beside:
        return {step.name: map_of(modules[step.name]) for step in stretch.layers}
    if joined:
        one = product([map_of(modules[step.name]) for step in stretch.released])
        assert one is not None  # no stretch has two kernels
        return {stretch.layers[0].name: one}
    found: LayerValues = {}
    current = ""
    for step in stretch.released:
        own = map_of(modules[step.name])
        if step.norm and current:
            normed = product([found[current], own])
            assert normed is not None
            found[current] = normed
        else:
            current = step.name
            found[current] = own
    if len(stretch.layers) == 2:
        # What is added in between does not show in a product; it is added at the end.
        first, second = (found[step.name] for step in stretch.layers)
        shift = second.of_constant(first.shift)
        names = [step.name for step in stretch.layers]
        found[names[0]] = LinearMap(first.weight, first.groups, torch.zeros_like(first.shift))
        found[names[1]] = LinearMap(second.weight, second.groups, shift)
    return found


def _parts(stretch: Stretch, whole: LinearMap) -> LayerValues:
    """Layers that lie side by side, from what they make together."""
    found: LayerValues = {}
    first = 0
    for layer in stretch.layers:
        rows = slice(first, first := first + layer.outputs)
        found[layer.name] = LinearMap(whole.weight[rows], whole.groups, whole.shift[rows])
    return found


def _pair(stretch: Stretch, whole: LinearMap) -> tuple[Tensor, Tensor] | None:
    """Weights of two layers from their product; None where it does not determine them."""
    first, second = stretch.layers
    inner = first.outputs
    flat = whole.dense().reshape(whole.outputs, whole.inputs, -1)
    outputs, inputs, size = flat.shape
    kernel = first.kernel or second.kernel
    if first.separate and second.groups == 1:
        # One kernel for each input, and one number for each pair: rank one.
        left, right = _cut_to_rank(flat.permute(1, 0, 2), 1)
        return right.reshape(inputs, 1, *kernel), left[:, :, 0].t()
    if second.separate and first.groups == 1:
        left, right = _cut_to_rank(flat.permute(0, 2, 1), 1)
        return right[:, 0], left[:, :, 0].reshape(outputs, 1, *kernel)
    if first.groups > 1 or second.groups > 1:
        return None
    if second.kernel:
        if inner >= min(outputs * size, inputs):
            return None
        left, right = _cut_to_rank(flat.permute(0, 2, 1).reshape(1, -1, inputs), inner)
        weight = left[0].reshape(outputs, size, inner).permute(0, 2, 1)
        return right[0], weight.reshape(outputs, inner, *kernel)
    if inner >= min(outputs, inputs * size):
        return None
    left, right = _cut_to_rank(flat.reshape(1, outputs, -1), inner)
    return right[0].reshape(inner, inputs, *kernel), left[0]


def _cut_to_rank(matrices: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Two factors of each matrix, ``[n, a, rank]`` and ``[n, rank, b]``, of equal size."""
    # A suspect can hold anything.
    finite = matrices.nan_to_num(0.0, 0.0, 0.0).clamp(-1e100, 1e100)
    u, sizes, v = torch.linalg.svd(finite, full_matrices=False)
    root = sizes[:, :rank].sqrt()
    return u[:, :, :rank] * root[:, None], root[:, :, None] * v[:, :rank]
