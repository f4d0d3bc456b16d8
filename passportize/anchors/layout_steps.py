"""Follow channels backwards through changes of layout: permute, reshape, cutting, indexing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from passportize.anchors.track import Track, carried
from passportize.tracing.graph import first_operand, known_shape, shape_of

__all__ = ["cut", "indexed", "permuted", "reshaped", "selected"]


def permuted(track: Track) -> list[Track]:
    """Through a step that only orders dimensions anew."""
    source = first_operand(track.node)
    if source is None:
        return []
    rank = len(known_shape(source))
    # Strides that are all different tell where each dimension went.
    probe = torch.empty_strided([2] * rank, [2**d for d in range(rank)], device="meta")
    rest = tuple(track.node.args[1:])
    permute: Any = track.node.target
    made = permute(probe, *rest, **track.node.kwargs)
    dims = [stride.bit_length() - 1 for stride in made.stride()]
    return carried(track, source, dims)


def reshaped(track: Track, source: fx.Node | None) -> list[Track]:
    """Through a change of shape that keeps the order of the entries."""
    if source is None:
        return []
    old, new = known_shape(source), known_shape(track.node)
    if math.prod(old) != math.prod(new):
        return []
    old_strides, new_strides = _row_major(old), _row_major(new)
    exact = {
        (size, stride): d for d, (size, stride) in enumerate(zip(old, old_strides, strict=True))
    }
    picked = tuple(
        (d, index)
        for out, index in track.picked
        if (d := exact.get((new[out], new_strides[out]))) is not None
    )
    size, stride = new[track.dim], new_strides[track.dim]
    if (same := exact.get((size, stride))) is not None:
        return [track._replace(node=source, dim=same, picked=picked)]
    for d, (wide, inner) in enumerate(zip(old, old_strides, strict=True)):
        if inner == stride and wide % size == 0 and wide > size:
            split = _split_dimension(track, new, new_strides, inner, wide)
            return [split._replace(node=source, dim=d, picked=picked)]
        if inner == stride and size % wide == 0 and 1 < wide < size:
            # Merged: fine if all the channels lie in one run of the inner dimension.
            outer, first = divmod(track.start, wide)
            if track.stop - 1 < (outer + 1) * wide:
                above = [e for e in range(d) if old_strides[e] == wide * inner and old[e] > outer]
                if not above:
                    return []
                picked = tuple(sorted((*picked, (above[-1], outer))))
                return [track._replace(node=source, dim=d, start=first, picked=picked)]
    return []


def _split_dimension(
    track: Track, shape: tuple[int, ...], strides: tuple[int, ...], inner: int, wide: int
) -> Track:
    """One dimension was split into several, of which the track follows the innermost.

    Outer parts of which one index is picked shift the start; the ones that are all meant repeat
    the channels as long as the runs stay adjacent, else the first run is used.
    """
    picked = dict(track.picked)
    start, repeats = track.start, track.repeats
    adjacent = start == 0 and track.channels * repeats == shape[track.dim]
    for d in range(track.dim - 1, -1, -1):
        if strides[d] >= wide * inner:
            break
        if d in picked:
            start += picked[d] * strides[d] // inner
            adjacent = adjacent and shape[d] == 1
        elif adjacent:
            repeats *= shape[d]
    return track._replace(start=start, repeats=repeats)


def _row_major(shape: Sequence[int]) -> tuple[int, ...]:
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def selected(track: Track, dim: int, index: int) -> list[Track]:
    """Through the choice of one index of a dimension, which disappears."""
    source = first_operand(track.node)
    if source is None:
        return []
    shape = known_shape(source)
    dim %= len(shape)
    dims = [d if d < dim else d + 1 for d in range(len(shape) - 1)]
    moved = carried(track, source, dims)
    pick = (dim, index % shape[dim])
    return [item._replace(picked=tuple(sorted((*item.picked, pick)))) for item in moved]


def cut(track: Track, source: fx.Node | None, dim: int, start: int) -> list[Track]:
    """Through a contiguous cut of one dimension."""
    if source is None:
        return []
    shape, made = known_shape(source), known_shape(track.node)
    dim, start = dim % len(shape), start % max(shape[dim % len(shape)], 1)
    if dim == track.dim:
        return [track._replace(node=source, start=track.start + start)]
    picks = dict(track.picked)
    if dim in picks:
        picks[dim] += start
    elif made[dim] == 1 and shape[dim] > 1:
        picks[dim] = start
    return [track._replace(node=source, picked=tuple(sorted(picks.items())))]


def _index_items(node: fx.Node) -> tuple[Any, ...]:
    index = node.args[1]
    return tuple(index) if isinstance(index, (tuple, list)) else (index,)


def indexed(track: Track) -> list[Track]:
    """Through ``x[...]`` with integers, slices, None, an ellipsis and index tensors."""
    node, source = track.node, first_operand(track.node)
    if source is None:
        return []
    shape = known_shape(source)
    items = list(_index_items(node))
    used = sum(1 for item in items if item is not None and item is not Ellipsis)
    fill = len(shape) - used
    if Ellipsis not in items:
        items.append(Ellipsis)
    dims: list[int | None] = []
    starts: dict[int, int] = {}
    picks: list[tuple[int, int]] = []
    tensor_at: list[tuple[int, int]] = []
    at = 0
    for item in items:
        if item is Ellipsis:
            dims += range(at, at + fill)
            at += fill
        elif item is None:
            dims.append(None)
        elif isinstance(item, bool):
            return []
        elif isinstance(item, int):
            picks.append((at, item % shape[at]))
            at += 1
        elif isinstance(item, slice):
            start, _, step = item.indices(shape[at]) if _is_plain(item) else (0, 0, 0)
            starts[at] = start if step == 1 else -1
            dims.append(at)
            at += 1
        else:
            tensor_at.append(
                (len(dims), len(shape_of(item) or ()) if isinstance(item, fx.Node) else 1)
            )
            at += 1
    if tensor_at:
        made = len(known_shape(node))
        extra = made - len(dims)
        adjacent = len({position for position, _ in tensor_at}) == 1
        position = tensor_at[0][0] if adjacent else 0
        dims[position:position] = [None] * max(extra, 0)
    if len(dims) != len(known_shape(node)):
        return []
    where = dims[track.dim]
    if where is None or starts.get(where, 0) < 0:
        return []
    shifted = track._replace(start=track.start + starts.get(where, 0))
    found = carried(shifted, source, dims)
    known = [(d, i + max(starts.get(d, 0), 0)) for item in found for d, i in item.picked]
    for d, start in starts.items():
        size = known_shape(node)[dims.index(d)]
        if d != where and size == 1 and shape[d] > 1 and start >= 0:
            picks.append((d, start))
    return [item._replace(picked=tuple(sorted({*known, *picks}))) for item in found]


def _is_plain(item: slice) -> bool:
    return all(part is None or isinstance(part, int) for part in (item.start, item.stop, item.step))
