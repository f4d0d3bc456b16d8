"""What elementwise steps, pooling, reductions and broadcasting do to labelled channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx

from passportize.alignment.axes import BLANK, FIXED, Diagonal, Heads
from passportize.alignment.channels import ChannelLabels, first_along_others, thin, varied
from passportize.tracing.graph import argument, step_name
from passportize.tracing.operations import Kind, Trait, steps

__all__ = [
    "PAIRING_STEPS",
    "REDUCING_STEPS",
    "UNARY_STEPS",
    "in_groups",
    "label_factor",
    "label_padding",
    "label_pair",
    "label_reduction",
    "label_unary",
]

UNARY_STEPS = steps(Kind.COPY, Kind.POINTWISE, Kind.ALONG, Kind.POOL)
_POSITIVE = UNARY_STEPS & steps(having=Trait.HOMOGENEOUS, lacking=Trait.LINEAR)
_UNSIZED = UNARY_STEPS & steps(having=Trait.ODD, lacking=Trait.HOMOGENEOUS)
_UNSCALED = UNARY_STEPS - steps(having=Trait.HOMOGENEOUS) - _UNSIZED
_RIGID = UNARY_STEPS - steps(having=Trait.LINEAR)
_POOLS = steps(Kind.POOL)
REDUCING_STEPS = steps(Kind.REDUCE, lacking=Trait.SEVERAL)
_MEANS = steps(Kind.REDUCE, having=Trait.LINEAR)
_SUMS = steps(Kind.SUM)
_QUOTIENTS = steps(Kind.QUOTIENT)
_PRODUCTS = steps(Kind.FACTOR) | _QUOTIENTS
PAIRING_STEPS = _SUMS | _PRODUCTS | steps(Kind.PAIR)


def label_unary(
    labels: ChannelLabels, name: str, values: Tensor, shape: tuple[int, ...]
) -> Tensor | None:
    """A step on one tensor that treats all channels alike; None where it mixes them.

    Args:
        labels: Where to write down what was found.
        name: Name of the step.
        values: Labels of its input.
        shape: Shape of its output.
    """
    if values.dim() != len(shape):
        return None
    if name in _POSITIVE:
        labels.positive(values)
    elif name in _UNSIZED:
        labels.unsize(values)
    elif name in _UNSCALED:
        labels.unscale(values)
    if name in _RIGID:
        labels.stiffen(values)
    narrow = thin(values)
    pooled = name in _POOLS
    for dim, size in enumerate(shape):
        if size != values.shape[dim] or (pooled and dim >= 2):
            if bool((narrow != narrow.narrow(dim, 0, 1)).any()):
                if not pooled or dim < 2:
                    return None
                # Positions that are pooled have to move alike; padding has no say.
                highest = narrow.amax(dim, keepdim=True)
                labels.tie(highest, narrow)
                narrow = highest
            narrow = narrow.narrow(dim, 0, 1)
    return narrow.expand(shape)


def label_padding(
    labels: ChannelLabels, values: Tensor, node: fx.Node, shape: tuple[int, ...]
) -> Tensor | None:
    """More entries at the ends of some dimensions; None where channels would come twice.

    Args:
        labels: Where to write down what was found.
        values: Labels of the input.
        node: The step.
        shape: Shape of its output.
    """
    number = argument(node, 3, "value", None) or 0
    constant = argument(node, 2, "mode", "constant") == "constant"
    if constant and number != 0:
        labels.stiffen(values)
        if number in (float("inf"), float("-inf")):
            labels.positive(values)
        else:
            labels.unscale(values)
    pads = list(argument(node, 1, "pad", ()))
    result = thin(values)
    for at in range(len(pads) // 2):
        dim = values.dim() - 1 - at
        ends = pads[2 * at : 2 * at + 2]
        if not any(ends):
            continue
        if not bool((result != result.narrow(dim, 0, 1)).any()):
            result = result.narrow(dim, 0, 1)
        elif constant and min(ends) >= 0:
            whole = [-1] * values.dim()
            whole[dim] = values.shape[dim]
            result = torch.nn.functional.pad(result.expand(whole), [0, 0] * at + ends, value=BLANK)
        else:
            return None
    return result.expand(shape)


def label_reduction(labels: ChannelLabels, node: fx.Node, values: Tensor) -> Tensor | None:
    """A mean, sum or norm over dimensions; over channels it leaves blanks."""
    name = step_name(node)
    first = 2 if name in ("norm", "vector_norm", "quantile") else 1
    given = argument(node, first, "dim", node.kwargs.get("axis"))
    keep = bool(argument(node, first + 1, "keepdim", False))
    if given is None or values.dim() == 0:
        return None
    dims = [d % values.dim() for d in (given if isinstance(given, (tuple, list)) else [given])]
    narrow = thin(values)
    low, high = narrow.amin(dims, keepdim=True), narrow.amax(dims, keepdim=True)
    if name == "sum" and bool((low != high).any()) and _differ(low) and not bool((low < 0).any()):
        # Several tensors beside each other (the paths of a selective kernel), which are added.
        low = high = _added(labels, narrow, low, dims)
    if name not in _MEANS or bool((low != high).any()):
        labels.unscale(narrow)
        labels.stiffen(narrow)
    if bool((low != high).any()) and _differ(low):
        # Channels of several groups, each reduced by itself, stay within theirs.
        groups = in_groups(narrow, dims)
        if groups is None:
            return None
        labels.heads.append(Heads(None, values=groups))
    result = torch.where(low == high, low, BLANK)
    result = result.expand([1 if d in dims else size for d, size in enumerate(values.shape)])
    for dim in sorted(dims, reverse=True):
        result = result if keep else result.squeeze(dim)
    return result


def label_factor(
    labels: ChannelLabels,
    loose: Mapping[str, tuple[Tensor, int]],
    found: Sequence[Tensor],
    shape: tuple[int, ...],
    step: int,
) -> Tensor | None:
    """Channels times a parameter of one number each (LayerScale); None for anything else.

    Args:
        labels: Where to write down what was found.
        loose: Atoms of the parameters that a forward pass uses directly, by name.
        found: Labels of the two factors, before broadcasting.
        shape: Shape of the product.
        step: Place in the forward pass.
    """
    for values, factors in (found, found[::-1]):
        flat = thin(factors).reshape(-1)
        name = next(
            (
                name
                for name, (atoms, _) in loose.items()
                if flat.numel() == atoms.numel() > 1 and torch.equal(flat, atoms.reshape(-1))
            ),
            None,
        )
        dims = [d for d in range(len(shape)) if d >= len(shape) - factors.dim()]
        dims = [d for d in dims if factors.shape[d - len(shape)] == flat.numel()]
        whole = thin(torch.broadcast_to(values, shape))
        if name is None or not dims or varied(whole) != dims[-1:]:
            continue
        inputs = whole.movedim(dims[-1], -1).reshape(-1, flat.numel())[0]
        if bool((inputs <= FIXED).any()):
            continue
        outputs = labels.fresh(flat.numel())
        for atoms in (inputs, flat):
            labels.accompany(atoms, outputs)
            labels.unscale(atoms)
        labels.unscale(outputs)
        diagonal = Diagonal("factor", inputs, outputs, {"weight": name}, 0, 0.0, step)
        labels.diagonals.append(diagonal)
        size = [-1 if d == dims[-1] else 1 for d in range(len(shape))]
        return outputs.view(size).expand(shape)
    return None


def label_pair(
    labels: ChannelLabels, name: str, found: Sequence[Tensor], shape: tuple[int, ...]
) -> Tensor:
    """Sums, products and choices of several tensors, or of a tensor and a number.

    Args:
        labels: Where to write down what was found.
        name: Name of the step.
        found: Labels of the tensors, before broadcasting.
        shape: Shape of the output.
    """
    if len(found) == 1:
        if name not in _PRODUCTS:
            labels.unscale(found[0])
            labels.stiffen(found[0])
        return torch.broadcast_to(found[0], shape)
    whole = [torch.broadcast_to(value, shape) for value in found]
    counts = [_spread(value) for value in found]
    # Of two factors a gate is the one that has no scale of its own.
    gates = [name in _PRODUCTS and labels.is_unscaled(value) for value in found]
    main = max(
        range(len(found)), key=lambda at: (found[at].numel(), counts[at], not gates[at], -at)
    )
    result = whole[main]
    if name in _PRODUCTS - _QUOTIENTS and len(found) == 2 and not any(gates):
        made = labels.times(result, whole[1 - main])
        if made is not None:
            for values in (*whole, made):
                labels.stiffen(values)
            return made
    for at, value in enumerate(whole):
        if at == main:
            continue
        neutral = _even_where_varied(found[at], thin(result))
        blank = neutral or bool((thin(value) == BLANK).any())
        if not (not blank and name in _SUMS) and not (neutral and name in _PRODUCTS):
            labels.stiffen(result)
            labels.stiffen(value)
        single = counts[at] == 1 < counts[main] and not _differ(thin(value))
        if single:
            # One channel that is the same to all others (spatial attention) stays as it is.
            labels.pin(value)
            if name in _SUMS:
                labels.unscale(result)
                labels.stiffen(result)
        elif not blank and name in _SUMS:
            in_heads = _meets_all_heads(labels, thin(result), value)
            (labels.tie_in_heads if in_heads else labels.tie)(result, value)
        elif not neutral:
            # They move together; a gate has no scale of its own.
            heads = _alike_in_blocks(thin(result), found[at])
            if _meets_all_heads(labels, thin(result), value):
                labels.accompany_in_heads(result, value)
            else:
                labels.accompany(result, value if heads is None else heads)
            labels.unscale(value)
        if name in _PRODUCTS:
            # What divides others has its scale the other way round.
            scaled = name not in _QUOTIENTS or main == 0
            if not neutral:
                labels.multiply(result, value)
        else:
            scaled = name in _SUMS and not blank
        if not scaled:
            labels.unscale(result)
    return result


def _added(labels: ChannelLabels, narrow: Tensor, low: Tensor, dims: Sequence[int]) -> Tensor:
    """Labels of a sum of channels beside each other; ``low`` are those of one summand.

    Parts of one layer can change places as wholes, the sum is the same (the splits of ResNeSt).
    """
    (along,) = [d for d in varied(narrow) if d in dims][:1] or [dims[0]]
    lying = [
        {axis.tensor for axis in labels.axes if bool(torch.isin(axis.atoms, part).any())}
        for part in map(torch.unique, narrow.unbind(along))
    ]
    if not lying[0] or any(tensors != lying[0] for tensors in lying):
        labels.tie(low, narrow)
        return low
    atoms, places = torch.unique(low, return_inverse=True)
    fresh = torch.where(atoms == FIXED, FIXED, labels.fresh(len(atoms)))
    labels.tie_in_heads(fresh[places], narrow)
    return fresh[places]


def in_groups(narrow: Tensor, dims: Sequence[int]) -> Tensor | None:
    """Atoms ``[groups, channels]`` with channels along some of the dimensions; None for others."""
    along = varied(narrow)
    within, across = ([d for d in along if (d in dims) == inside] for inside in (True, False))
    if len(within) != 1 or len(across) != 1:
        return None
    narrow = first_along_others(narrow, along)
    atoms = narrow.movedim((*across, *within), (0, 1)).reshape(-1, narrow.shape[within[0]])
    distinct = len(torch.unique(atoms)) == atoms.numel() and bool((atoms > FIXED).all())
    return atoms if distinct else None


def _differ(values: Tensor) -> bool:
    return bool((values != values.flatten()[0]).any())


def _spread(values: Tensor) -> int:
    """How many channels it has."""
    found = torch.unique(thin(values))
    return int((found > FIXED).sum())


def _alike_in_blocks(values: Tensor, fixed: Tensor) -> Tensor | None:
    """First channels of every head, where a fixed tensor does the same to all heads.

    Channels keep their places within a head then (rotary embeddings), and heads can change theirs.
    None where that is not so.
    """
    if bool((thin(fixed) != FIXED).any()):
        return None
    along = varied(values)
    if len(along) != 2 or not bool((values > FIXED).all()):
        return None
    heads, channels = along
    at = heads - (values.dim() - fixed.dim())
    if at >= 0 and fixed.shape[at] != 1:
        return None
    return values.narrow(channels, 0, 1)


def _meets_all_heads(labels: ChannelLabels, values: Tensor, other: Tensor) -> bool:
    """Whether channels of every head meet the same parameter for each channel, in their order."""
    narrow, along = thin(other), varied(values)
    if len(along) != 2 or varied(narrow) != along[1:]:
        return False
    if not (bool((narrow > FIXED).all()) and bool((values > FIXED).all())):
        return False
    # A parameter lies on no axis yet; a stream that meets a table of places does.
    return not any(bool(torch.isin(axis.atoms, narrow).any()) for axis in labels.axes)


def _even_where_varied(values: Tensor, other: Tensor) -> bool:
    """Whether a fixed tensor has length 1 along every dimension that counts channels of another.

    Adding or multiplying it then does the same to all of these channels.
    """
    narrow = thin(values)
    if bool((narrow > FIXED).any()):
        return False
    shift = other.dim() - values.dim()
    return all(dim < shift or values.shape[dim - shift] == 1 for dim in varied(other))
