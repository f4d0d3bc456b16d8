"""What norms do to labelled channels."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from passportize.alignment.axes import Axis, Diagonal
from passportize.alignment.channels import ChannelLabels, thin, varied
from passportize.alignment.length_norms import offset_of
from passportize.alignment.walk_arithmetic import in_groups
from passportize.alignment.walk_layers import Labelled, channels_along, uniform_along

__all__ = [
    "channels_in_heads",
    "counted_by",
    "in_every_head",
    "is_known_norm",
    "label_norm",
]

_NORM_ROLES = {
    "running_mean": "mean",
    "running_var": "variance",
    "weight": "scale",
    "bias": "vector",
}
_LINEAR = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Dropout3d)
_POSITIVE = (nn.ReLU, nn.LeakyReLU)
_ODD = (nn.Tanh, nn.Softsign)
_PER_CHANNEL = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


def is_known_norm(norm: nn.Module) -> bool:
    """Whether a norm is of a kind of which :func:`label_norm` knows what it does."""
    return isinstance(norm, (*_PER_CHANNEL, nn.GroupNorm)) or _is_over_channels(norm)


def _is_over_channels(norm: nn.Module) -> bool:
    return hasattr(norm, "normalized_shape") or offset_of(norm) is not None


def _length_offset(norm: nn.Module) -> float | None:
    """What a norm that takes away the length alone adds to its factors; None for other norms."""
    if isinstance(norm, nn.RMSNorm) or type(norm).__name__.lower().startswith("rmsnorm"):
        return 0.0
    return offset_of(norm)


def label_norm(
    labels: ChannelLabels, norm: nn.Module, names: dict[int, str], values: Tensor, step: int
) -> Labelled | None:
    """A norm; arguments and result as for :func:`label_weight`."""
    per_channel = isinstance(norm, _PER_CHANNEL)
    over_channels = _is_over_channels(norm)
    if not is_known_norm(norm):
        return None
    dim = counted_by(norm, values)
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
        inputs = labels.fresh(width)
        labels.accompany_in_heads(inputs, outputs)
    size = width // groups
    centred = isinstance(norm, (nn.GroupNorm, nn.LayerNorm))
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
        if centred:
            labels.mirror(before[:1], before)
    if not (per_channel or centred or _length_offset(norm) is not None):
        for atoms in (inputs, outputs):
            labels.unscale(atoms)
    elif not per_channel:
        labels.unsize(inputs)
    plain = per_channel or centred or isinstance(norm, nn.RMSNorm)
    if "weight" not in factors or not plain:
        labels.mirror(inputs, outputs, always="weight" not in factors)
        labels.read(inputs)
        for atoms in (inputs, outputs):
            labels.unsize(atoms)
    for child in norm.children():
        if isinstance(child, _POSITIVE):
            labels.positive(outputs)
        elif isinstance(child, _ODD):
            labels.unsize(outputs)
        elif not isinstance(child, _LINEAR):
            labels.unscale(outputs)
        if not isinstance(child, _LINEAR):
            labels.stiffen(outputs)
    _note_factors(
        labels, norm, {key: names[id(tensors[key])] for key in tensors}, inputs, outputs, step
    )
    found = Labelled(inputs, outputs, dim, values.dim(), centred=centred, shifted="bias" in factors)
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
    labels.accompany(heads, behind)
    labels.size_in_heads(known.outputs, behind)
    if known.shifted:
        # What is added to all heads keeps their signs; the factors take over those of all at once.
        labels.tie_in_heads(known.inputs, heads)
    else:
        labels.size_in_heads(known.inputs, heads)
        labels.read(heads)
        labels.mirror(heads, behind)
    if known.centred:
        labels.mirror(heads[:, :1], heads)
    return known._replace(outputs=behind, head=dim)


def channels_in_heads(values: Tensor, dim: int) -> Tensor | None:
    """Atoms ``[heads, channels]`` of channels that each head has for itself; None for others."""
    narrow = thin(values)
    return in_groups(narrow, [dim]) if varied(narrow)[-1:] == [dim] else None


def counted_by(norm: nn.Module, values: Tensor) -> int:
    """The dimension that counts the channels of a norm."""
    last = _is_over_channels(norm) and "2d" not in type(norm).__name__
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
    single = isinstance(norm, nn.GroupNorm) and norm.num_groups == 1
    kind: Literal["norm", "statistics"]
    offset = 0.0
    if isinstance(norm, nn.modules.batchnorm._BatchNorm) and "running_var" in names:
        kind = "statistics"
    elif isinstance(norm, nn.LayerNorm) or single:
        kind = "norm"
        labels.centred.append(inputs)
    elif (found := _length_offset(norm)) is not None:
        kind, offset = "norm", found
        labels.spherical.append(inputs)
    else:
        labels.stiffen(inputs)
        labels.stiffen(outputs)
        return
    kept = {key: names[key] for key in names if key != "num_batches_tracked"}
    eps = getattr(norm, "eps", 0.0) or 0.0
    labels.diagonals.append(Diagonal(kind, inputs, outputs, kept, 0, float(eps), step, offset))
