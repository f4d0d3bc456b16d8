"""What weights do to labelled channels."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from passportize.alignment.axes import BLANK, FIXED, Axis
from passportize.alignment.channels import ChannelLabels, thin
from passportize.tracing.weight_layers import expert_shape_of, standardises_weight

__all__ = [
    "Labelled",
    "Product",
    "channels_along",
    "label_product",
    "label_weight",
    "uniform_along",
]


def channels_along(labels: ChannelLabels, values: Tensor, dim: int) -> Tensor:
    """The atom of every index of a dimension; several at one index become the same one."""
    flat = thin(values.movedim(dim, 0).flatten(1) if values.dim() > 1 else values.unsqueeze(1))
    flat = flat.expand(values.shape[dim], flat.shape[1])
    first = flat[:, 0].clone()
    if flat.shape[1] > 1:
        labels.tie(flat[:, :1], flat)
    first[first == BLANK] = FIXED
    return first


def uniform_along(values: Tensor, dim: int) -> bool:
    """Whether labels are equal along a dimension, but not all of them are equal."""
    narrow = thin(values)
    same = bool((narrow == narrow.narrow(dim, 0, 1)).all())
    return same and bool((narrow != narrow.flatten()[0]).any())


class Product(NamedTuple):
    """A weight by which channels are summed.

    Attributes:
        name: Its name in the state dict.
        shape: Its shape.
        kernel: Number of dimensions of its kernel.
        groups: Groups of channels.
        transposed: Whether it lists its inputs first.
    """

    name: str
    shape: tuple[int, ...]
    kernel: int = 0
    groups: int = 1
    transposed: bool = False


class Labelled(NamedTuple):
    """Channels before and behind a layer.

    Attributes:
        inputs: Atom of every input channel.
        outputs: Of every output channel.
        dim: The dimension that counts them.
        rank: Number of dimensions of the input.
        head: The dimension that counts heads, where every head has outputs of its own, which are
            ``[heads, channels]`` then.
        centred: Whether the mean over them is taken away.
        shifted: Whether a norm adds the same to every head.
    """

    inputs: Tensor
    outputs: Tensor
    dim: int
    rank: int
    head: int | None = None
    centred: bool = False
    shifted: bool = False


def label_product(
    labels: ChannelLabels, product: Product, values: Tensor, step: int
) -> Labelled | None:
    """Sums over channels by a weight, without what is added behind; None where nothing is known.

    Args:
        labels: Where to write down what was found.
        product: The weight.
        values: Labels of the input.
        step: Place in the forward pass.
    """
    name, shape, kernel, groups, transposed = product
    dim = values.dim() - 1 - kernel
    if dim < 0 or uniform_along(values, dim):
        return None
    inputs = channels_along(labels, values, dim)
    width = shape[1] * groups if transposed else shape[0]
    outputs = labels.fresh(width)
    if groups == 1:
        labels.axes.append(Axis(name, 1 - int(transposed), "columns", inputs, step))
        labels.axes.append(Axis(name, int(transposed), "rows", outputs, step))
    elif groups == len(inputs) == width or (groups == len(inputs) and not transposed):
        repeated = inputs.repeat_interleave(width // groups)
        labels.accompany(repeated, outputs)
        labels.axes.append(Axis(name, 0, "columns", repeated, step, moves=False))
        labels.axes.append(Axis(name, 0, "rows", outputs, step))
    else:
        for at, parts in enumerate(zip(inputs.chunk(groups), outputs.chunk(groups), strict=True)):
            # The one lie along the layer, group after group, the others within each group.
            along, within = parts if transposed else parts[::-1]
            roles = ("columns", "rows") if transposed else ("rows", "columns")
            first = at * len(along)
            meant = first, first + len(along)
            labels.axes.append(Axis(name, 1, roles[1], within, step, rows=meant, cell=at))
            labels.axes.append(Axis(name, 0, roles[0], along, step, first=first, cell=at))
    if groups > 1:
        labels.stiffen(inputs)
        labels.stiffen(outputs)
    return Labelled(inputs, outputs, dim, values.dim())


def label_weight(
    labels: ChannelLabels, module: nn.Module, names: dict[int, str], values: Tensor, step: int
) -> Labelled | None:
    """A linear layer or convolution.

    Args:
        labels: Where to write down what was found.
        module: The layer.
        names: Name of every parameter and buffer, by identity.
        values: Labels of the input.
        step: Place in the forward pass.

    Returns:
        Its channels; None where nothing is known.
    """
    weight = module._parameters.get("weight")
    if weight is None or expert_shape_of(module):
        return None
    groups = int(getattr(module, "groups", 1))
    found = label_product(
        labels,
        Product(
            names[id(weight)],
            tuple(weight.shape),
            len(getattr(module, "kernel_size", ())),
            groups,
            bool(getattr(module, "transposed", False)),
        ),
        values,
        step,
    )
    if found is None:
        return None
    inputs, outputs = found.inputs, found.outputs
    width = len(outputs)
    if standardises_weight(module):
        for atoms in (inputs, outputs):
            labels.unscale(atoms)
            labels.stiffen(atoms)
    for key, parameter in module.named_parameters(recurse=False):
        if key == "weight":
            continue
        if key != "bias":
            labels.stiffen(inputs)
            labels.stiffen(outputs)
        if parameter.dim() == 0 or parameter.shape[0] != width:
            labels.unscale(inputs)
            labels.pin(outputs)
            continue
        labels.axes.append(Axis(names[id(parameter)], 0, "vector", outputs, step))
        if key != "bias":
            labels.unscale(inputs)
            labels.unscale(outputs)
    return found
