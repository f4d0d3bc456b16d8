"""What weights and norms do to labelled channels."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from passportize.alignment.channels import (
    BLANK,
    FIXED,
    Axis,
    ChannelLabels,
    Diagonal,
    first_along_others,
    thin,
    varied,
)
from passportize.tracing.weight_layers import expert_shape_of, standardises_weight

__all__ = [
    "Labelled",
    "Product",
    "channels_along",
    "channels_in_heads",
    "in_every_head",
    "is_known_norm",
    "label_norm",
    "label_product",
    "label_weight",
    "over_positions",
    "uniform_along",
]

_NORM_ROLES = {
    "running_mean": "mean",
    "running_var": "variance",
    "weight": "scale",
    "bias": "vector",
}
_LINEAR = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Dropout3d)
_POSITIVE = (nn.ReLU, nn.LeakyReLU)
_PER_CHANNEL = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
_NORMS = (*_PER_CHANNEL, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


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


def over_positions(labels: ChannelLabels, module: nn.Module, values: Tensor) -> int | None:
    """The dimension whose entries a module mixes, or norms, if labels are equal along it.

    Where a few tensors with channels of their own are laid side by side to be mixed, their channels
    become the same ones.

    Args:
        labels: Where to write that down.
        module: A linear layer, a convolution of single entries or a norm; none for any other.
        values: Labels of its input.
    """
    if isinstance(module, nn.Linear):
        dim = values.dim() - 1
    elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        dim = values.dim() - 1 - len(module.kernel_size)
        if {*module.kernel_size, *module.stride, module.groups} != {1}:
            return None
        if module.padding not in ("valid", (0,) * len(module.kernel_size)):
            return None
    elif isinstance(module, _NORMS) and len(getattr(module, "normalized_shape", (0,))) == 1:
        dim = _counted_by(module, values)
    else:
        return None
    if not 0 <= dim < values.dim():
        return None
    if uniform_along(values, dim):
        return dim
    narrow = thin(values)
    across = [d for d in varied(narrow) if d != dim]
    if len(across) == 1 and values.shape[dim] < values.shape[across[0]]:
        first = narrow.narrow(dim, 0, 1)
        if isinstance(module, _NORMS) or not bool((narrow > FIXED).all()):
            return None
        labels.tie(first, narrow)
        return dim
    return None


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
    """

    inputs: Tensor
    outputs: Tensor
    dim: int
    rank: int
    head: int | None = None


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


def is_known_norm(norm: nn.Module) -> bool:
    """Whether a norm is of a kind of which :func:`label_norm` knows what it does."""
    return isinstance(norm, (*_PER_CHANNEL, nn.GroupNorm)) or hasattr(norm, "normalized_shape")


def label_norm(
    labels: ChannelLabels, norm: nn.Module, names: dict[int, str], values: Tensor, step: int
) -> Labelled | None:
    """A norm; arguments and result as for :func:`label_weight`."""
    per_channel = isinstance(norm, _PER_CHANNEL)
    over_channels = hasattr(norm, "normalized_shape")
    if not is_known_norm(norm):
        return None
    dim = _counted_by(norm, values)
    if values.dim() <= dim or uniform_along(values, dim):
        return None
    width = values.shape[dim]
    groups = int(getattr(norm, "num_groups", 1))
    tensors = dict(norm.named_parameters()) | dict(norm.named_buffers())
    statistics = [key for key in ("running_mean", "running_var") if key in tensors]
    factors = [key for key in ("weight", "bias") if key in tensors]
    if any(tensors[key].shape != (width,) for key in (*statistics, *factors)):
        return None
    if set(tensors) - {*statistics, *factors, "num_batches_tracked"}:
        return None
    heads = channels_in_heads(values, dim) if over_channels else None
    outputs = labels.fresh(width)
    if heads is None:
        inputs = channels_along(labels, values, dim)
        labels.accompany(inputs, outputs)
    else:
        inputs = heads[0]
        labels.accompany_in_heads(inputs, outputs)
    size = width // groups
    for at in range(groups):
        first = at * size
        before, after = inputs[first : first + size], outputs[first : first + size]
        for key in (*statistics, *factors):
            role = _NORM_ROLES[key]
            moved = before if key in statistics else after
            sources = before if role == "scale" else None
            name = names[id(tensors[key])]
            cell = at if groups > 1 else None
            labels.axes.append(Axis(name, 0, role, moved, step, first, inputs=sources, cell=cell))
    if not per_channel:
        labels.unscale(inputs)
    if "weight" not in factors:
        labels.positive(inputs)
        labels.unscale(outputs)
    if over_channels and not isinstance(norm, (nn.LayerNorm, nn.RMSNorm)):
        labels.unscale(outputs)
    for child in norm.children():
        if isinstance(child, _POSITIVE):
            labels.positive(outputs)
        elif not isinstance(child, _LINEAR):
            labels.unscale(outputs)
        if not isinstance(child, _LINEAR):
            labels.stiffen(outputs)
    _note_factors(
        labels, norm, {key: names[id(tensors[key])] for key in tensors}, inputs, outputs, step
    )
    found = Labelled(inputs, outputs, dim, values.dim())
    return found if heads is None else in_every_head(labels, found, heads, varied(thin(values))[0])


def in_every_head(
    labels: ChannelLabels, known: Labelled, heads: Tensor, dim: int | None
) -> Labelled:
    """What a norm makes of the channels of every head.

    Args:
        labels: Where to write down what was found.
        known: Its channels, without heads.
        heads: Those that it meets, int64 ``[heads, channels]``.
        dim: The dimension that counts heads.
    """
    behind = labels.fresh(heads.numel()).view(heads.shape)
    labels.tie_in_heads(known.inputs, heads)
    labels.accompany(heads, behind)
    labels.tie_in_heads(known.outputs, behind)
    return known._replace(outputs=behind, head=dim)


def channels_in_heads(values: Tensor, dim: int) -> Tensor | None:
    """Atoms ``[heads, channels]`` of channels that each head has for itself; None for others."""
    narrow = thin(values)
    along = varied(narrow)
    if len(along) != 2 or along[1] != dim:
        return None
    atoms = first_along_others(narrow, along).reshape(-1, values.shape[dim])
    distinct = len(torch.unique(atoms)) == atoms.numel() and bool((atoms > FIXED).all())
    return atoms if distinct else None


def _counted_by(norm: nn.Module, values: Tensor) -> int:
    """The dimension that counts the channels of a norm."""
    last = hasattr(norm, "normalized_shape") and "2d" not in type(norm).__name__
    return values.dim() - 1 if last else 1


def _note_factors(
    labels: ChannelLabels,
    norm: nn.Module,
    names: dict[str, str],
    inputs: Tensor,
    outputs: Tensor,
    step: int,
) -> None:
    """What a norm does to channels that are mixed."""
    name = type(norm).__name__.lower()
    single = isinstance(norm, nn.GroupNorm) and norm.num_groups == 1
    kind: Literal["norm", "statistics"]
    if isinstance(norm, nn.modules.batchnorm._BatchNorm) and "running_var" in names:
        kind = "statistics"
    elif isinstance(norm, nn.LayerNorm) or single:
        kind = "norm"
        labels.centred.append(inputs)
    elif isinstance(norm, nn.RMSNorm) or name.startswith("rmsnorm"):
        kind = "norm"
        labels.spherical.append(inputs)
    else:
        labels.stiffen(inputs)
        labels.stiffen(outputs)
        return
    kept = {key: names[key] for key in names if key != "num_batches_tracked"}
    eps = getattr(norm, "eps", 0.0) or 0.0
    labels.diagonals.append(Diagonal(kind, inputs, outputs, kept, 0, float(eps), step))
