"""Follow the channels of a tensor backwards through one step of a recorded graph.

A :class:`passportize.anchors.track.Track` says which entries of one dimension of a tensor are the
channels of a norm. :func:`step_back` answers where the same channels lie in the inputs of the step
that made the tensor. It knows layout, splitting, reductions, broadcasting and concatenation over
another dimension; what mixes channels (linear layers, products of two computed tensors, attention)
is not crossed. Shapes come from ``node.meta["shape"]``.
"""

from __future__ import annotations

import math
import operator

from torch import fx

from passportize.anchors.layout_steps import cut, indexed, permuted, reshaped, selected
from passportize.anchors.track import Track, carried
from passportize.tracing.graph import (
    argument,
    first_operand,
    known_shape,
    operands,
    shape_of,
    step_name,
    tensor_list,
)
from passportize.tracing.operations import CAT_STEPS, MIXING_STEPS, RESHAPE_STEPS, Kind, steps

__all__ = ["concat_pieces", "step_back"]

_PERMUTE = steps(Kind.PERMUTE)
_REDUCE = steps(Kind.REDUCE)
_SPLIT = steps(Kind.SPLIT)
# Steps by entries may take further tensors than their first (clamp, pow).
_BROADCAST = steps(
    *(Kind.POINTWISE, Kind.SUM, Kind.FACTOR, Kind.QUOTIENT, Kind.PAIR, Kind.WRITE, Kind.BROADCAST)
)


def step_back(track: Track) -> list[Track]:
    """Where the channels of a tensor lie in the inputs of the step that made it.

    Returns:
        One track for every input that carries the same channels; none where the step makes new
        channels. Inputs that are broadcast over positions (gates, biases) are given only where no
        input has the full shape. Concatenation over the channels themselves is not crossed here.
    """
    node = track.node
    if node.op not in ("call_function", "call_method", "call_module"):
        return []
    if node.op == "call_module":
        return _same_rank(track) if node.meta.get("kind") != "weight" else []
    name = step_name(node)
    if node.target is operator.getitem:
        return _from_tuple(track)
    if name in MIXING_STEPS:
        return []
    if name in _PERMUTE:
        return permuted(track)
    if name in RESHAPE_STEPS:
        return reshaped(track, first_operand(node))
    if name == "getitem":
        return indexed(track)
    if name == "select":
        return selected(track, int(argument(node, 1, "dim")), int(argument(node, 2, "index")))
    if name == "narrow":
        dim, start = int(argument(node, 1, "dim")), argument(node, 2, "start")
        return cut(track, first_operand(node), dim, start) if isinstance(start, int) else []
    if name in CAT_STEPS:
        return _concatenated(track)
    if name == "stack":
        return _stacked(track)
    if name in _REDUCE and first_operand(node) is not None:
        return _reduced(track, node)
    if name == "setitem":
        return _written(track)
    if name in _BROADCAST:
        return _broadcast(track)
    return _same_rank(track)


def _from_tuple(track: Track) -> list[Track]:
    """Through one output of a step that gives several."""
    parent, index = track.node.args[0], track.node.args[1]
    if not isinstance(parent, fx.Node) or not isinstance(index, int):
        return []
    name, source = step_name(parent), first_operand(parent)
    if source is None:
        return []
    if name == "unbind":
        shape = known_shape(source)
        dim = int(argument(parent, 1, "dim", 0)) % len(shape)
        dims = [d if d < dim else d + 1 for d in range(len(shape) - 1)]
        moved = carried(track, source, dims)
        return [item._replace(picked=tuple(sorted((*item.picked, (dim, index))))) for item in moved]
    if name in _SPLIT:
        dim = int(argument(parent, 2, "dim", 0)) % len(known_shape(source))
        sizes = {
            user.args[1]: known_shape(user)[dim]
            for user in parent.users
            if user.target is operator.getitem and shape_of(user) is not None
        }
        start = sum(size for at, size in sizes.items() if isinstance(at, int) and at < index)
        return cut(track, source, dim, start) if len(sizes) > index else []
    if name in _REDUCE:
        return _reduced(track, parent)
    if name in MIXING_STEPS:
        return []
    return _same_rank(track, parent)


def concat_pieces(track: Track) -> list[tuple[Track, int]] | None:
    """Pieces of a concatenation over the channels that hold the channels of a track.

    Returns:
        ``(track of the piece, its number of channels)`` in order; None where the step is no such
        concatenation or repeated channels are spread over several pieces.
    """
    node = track.node
    if node.op == "call_module" or step_name(node) not in CAT_STEPS:
        return None
    tensors = tensor_list(node)
    rank = len(known_shape(node))
    if int(argument(node, 1, "dim", 0)) % rank != track.dim:
        return None
    pieces: list[tuple[Track, int]] = []
    offset = 0
    for item in tensors:
        shape = known_shape(item)
        if len(shape) != rank:  # an empty legacy tensor
            continue
        first = max(track.start, offset)
        last = min(track.stop, offset + shape[track.dim])
        if first < last:
            count = last - first
            if track.repeats > 1 and count != track.channels * track.repeats:
                return None
            channels = count if track.repeats == 1 else track.channels
            piece = track._replace(node=item, start=first - offset, channels=channels)
            pieces.append((piece, channels))
        offset += shape[track.dim]
    return pieces


def _concatenated(track: Track) -> list[Track]:
    pieces = concat_pieces(track)
    if pieces is not None:
        return [pieces[0][0]] if len(pieces) == 1 else []
    rank = len(known_shape(track.node))
    return [
        track._replace(node=item)
        for item in tensor_list(track.node)
        if len(known_shape(item)) == rank
    ]


def _stacked(track: Track) -> list[Track]:
    node = track.node
    dim = int(argument(node, 1, "dim", 0)) % len(known_shape(node))
    if dim == track.dim:
        return []
    dims = [d if d < dim else d - 1 for d in range(len(known_shape(node)))]
    picked = dict(track.picked)
    chosen = [picked.pop(dim)] if dim in picked else None
    rest = tuple(sorted((d, index) for d, index in picked.items()))
    tensors = tensor_list(node)
    moved = track._replace(picked=rest)
    return [
        found
        for index, item in enumerate(tensors)
        if chosen is None or index in chosen
        for found in carried(moved, item, dims)
    ]


def _reduced(track: Track, node: fx.Node) -> list[Track]:
    source = first_operand(node)
    if source is None:
        return []
    old, new = known_shape(source), known_shape(track.node)
    if len(operands(node)) > 1:
        return _broadcast(track)
    if len(old) == len(new):
        return [track._replace(node=source)] if old[track.dim] == new[track.dim] else []
    given = argument(node, 1, "dim", node.kwargs.get("axis"))
    if given is None:
        return []
    gone = {d % len(old) for d in (given if isinstance(given, (tuple, list)) else (given,))}
    kept = [d for d in range(len(old)) if d not in gone]
    return carried(track, source, kept) if len(kept) == len(new) else []


def _written(track: Track) -> list[Track]:
    """Through ``x[...] = value``: what was there before, and what was written."""
    node = track.node
    found = _aligned(track, first_operand(node))
    value = argument(node, 2, "value")
    if isinstance(value, fx.Node) and shape_of(value) is not None:
        found += _aligned(track, value)
    return found


def _aligned(track: Track, source: fx.Node | None) -> list[Track]:
    """An input whose dimensions are matched from the right."""
    if source is None:
        return []
    old, new = known_shape(source), known_shape(track.node)
    dim = track.dim - (len(new) - len(old))
    if dim < 0 or old[dim] != new[track.dim]:
        return []
    shift = len(new) - len(old)
    picked = tuple((d - shift, i) for d, i in track.picked if d >= shift and old[d - shift] > i)
    return [track._replace(node=source, dim=dim, picked=picked)]


def _broadcast(track: Track) -> list[Track]:
    new = known_shape(track.node)
    found = [item for source in operands(track.node) for item in _aligned(track, source)]
    full = [item for item in found if math.prod(known_shape(item.node)) == math.prod(new)]
    return full or found


def _same_rank(track: Track, step: fx.Node | None = None) -> list[Track]:
    """Through a step that leaves the rank and the size of the channel dimension alone."""
    new = known_shape(track.node)
    return [
        track._replace(node=source)
        for source in operands(step or track.node)
        if len(known_shape(source)) == len(new) and known_shape(source)[track.dim] == new[track.dim]
    ]
