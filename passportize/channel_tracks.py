"""Follows the channels of a tensor backwards through one step of a recorded graph.

A :class:`Track` says which entries of one dimension of a tensor are the channels of a norm.
:func:`step_back` answers where the same channels lie in the inputs of the step that made the
tensor. It knows layout (permute, reshape, indexing, splitting), reductions, broadcasting and
concatenation over another dimension; what mixes channels (linear layers, products of two computed
tensors, attention) is not crossed. Shapes come from ``node.meta["shape"]``.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx

__all__ = [
    "MIXING_STEPS",
    "Track",
    "argument",
    "concat_pieces",
    "forward_tracks",
    "operands",
    "shape_of",
    "step_back",
    "step_name",
]


class Track(NamedTuple):
    """Channels of a norm in a tensor: channel ``c`` is at ``start + j * channels + c``.

    Attributes:
        node: The step that made the tensor.
        dim: The dimension that counts channels.
        start: First entry.
        channels: How many channels.
        repeats: How many runs of all channels follow each other (``j < repeats``).
        picked: Other dimensions of which a single index is meant, as ``(dim, index)``.
    """

    node: fx.Node
    dim: int
    start: int
    channels: int
    repeats: int = 1
    picked: tuple[tuple[int, int], ...] = ()

    @property
    def stop(self) -> int:
        """One past the last entry."""
        return self.start + self.channels * self.repeats


_PERMUTE = {
    "permute", "transpose", "swapaxes", "swapdims", "t", "T", "mT", "H", "mH", "adjoint",
    "movedim", "moveaxis",
}  # fmt: skip
_RESHAPE = {
    "reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as",
    "ravel", "_unsafe_view",
}  # fmt: skip
_REDUCE = {
    "mean", "sum", "amax", "amin", "max", "min", "norm", "std", "var", "prod", "logsumexp",
    "median", "nanmean", "nansum", "mode", "quantile", "vector_norm", "std_mean", "var_mean",
    "kthvalue",
}  # fmt: skip
_SPLIT = {"chunk", "split", "split_with_sizes", "tensor_split", "unsafe_chunk", "unsafe_split"}
_CAT = {"cat", "concat", "concatenate"}
_BROADCAST = {
    "add", "radd", "iadd", "sub", "rsub", "isub", "subtract", "mul", "rmul", "imul", "multiply",
    "div", "rdiv", "idiv", "truediv", "rtruediv", "itruediv", "true_divide", "divide", "where",
    "lerp", "addcmul", "addcdiv", "maximum", "minimum", "fmax", "fmin", "pow", "rpow", "copy",
    "masked_fill", "expand", "expand_as", "broadcast_to", "hypot", "logaddexp", "clamp",
}  # fmt: skip
# These mix channels, or make new ones.
MIXING_STEPS = {
    "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
    "conv_transpose3d", "matmul", "rmatmul", "mm", "bmm", "mv", "addmm", "baddbmm", "addbmm",
    "einsum", "tensordot", "dot", "inner", "outer", "kron", "cdist", "bilinear", "embedding",
    "embedding_bag", "scaled_dot_product_attention", "multi_head_attention_forward", "lstm", "gru",
    "rnn_tanh", "rnn_relu", "one_hot", "unfold", "fold", "pixel_shuffle", "pixel_unshuffle",
    "channel_shuffle", "native_channel_shuffle", "cumsum", "arange", "zeros_like", "ones_like",
    "empty_like", "full_like", "rand_like", "randn_like", "new_zeros", "new_ones", "new_empty",
    "new_full", "shape", "deform_conv2d", "repeat_interleave_channels",
}  # fmt: skip


def step_name(node: fx.Node) -> str:
    """Plain name of a step: ``"add"`` for ``torch.add``, ``x + y``, ``x.add_(y)``."""
    if node.op == "call_function":
        name = getattr(node.target, "__name__", str(node.target))
        if name == "__get__":
            name = getattr(getattr(node.target, "__self__", None), "__name__", name)
    elif node.op == "call_method":
        name = str(node.target)
    elif node.op == "call_module":
        return str(node.meta.get("kind") or "module")
    else:
        return node.op
    return name.strip("_") if name not in ("_unsafe_view",) else name


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """Shape of the tensor that a step made, None where unknown or not a tensor."""
    shape = node.meta.get("shape")
    return shape if isinstance(shape, tuple) else None


def argument(node: fx.Node, position: int, keyword: str, default: Any = None) -> Any:
    """An argument of a step, given by position or by keyword."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(keyword, default)


def operands(node: fx.Node) -> list[fx.Node]:
    """The tensors that a step reads, in order, each once."""
    return [item for item in node.all_input_nodes if shape_of(item) is not None]


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
        return _permuted(track)
    if name in _RESHAPE:
        return _reshaped(track, _first(node))
    if name == "getitem":
        return _indexed(track)
    if name == "select":
        return _selected(track, int(argument(node, 1, "dim")), int(argument(node, 2, "index")))
    if name == "narrow":
        dim, start = int(argument(node, 1, "dim")), argument(node, 2, "start")
        return _cut(track, _first(node), dim, start) if isinstance(start, int) else []
    if name in _CAT:
        return _concatenated(track)
    if name == "stack":
        return _stacked(track)
    if name in _REDUCE and _first(node) is not None:
        return _reduced(track, node)
    if name == "setitem":
        return _written(track)
    if name in _BROADCAST:
        return _broadcast(track)
    return _same_rank(track)


def _first(node: fx.Node) -> fx.Node | None:
    value = node.args[0] if node.args else next(iter(node.kwargs.values()), None)
    return value if isinstance(value, fx.Node) and shape_of(value) is not None else None


def _shape(node: fx.Node) -> tuple[int, ...]:
    shape = shape_of(node)
    assert shape is not None
    return shape


def _moved(track: Track, source: fx.Node, dims: Sequence[int | None]) -> list[Track]:
    """A track through a change of dimensions; ``dims[d]`` is where output dimension d was."""
    dim = dims[track.dim]
    if dim is None or track.stop > _shape(source)[dim]:
        return []
    picked = tuple(
        (where, index) for out, index in track.picked if (where := dims[out]) is not None
    )
    return [track._replace(node=source, dim=dim, picked=tuple(sorted(picked)))]


def _permuted(track: Track) -> list[Track]:
    source = _first(track.node)
    if source is None:
        return []
    rank = len(_shape(source))
    # Strides that are all different tell where each dimension went.
    probe = torch.empty_strided([2] * rank, [2**d for d in range(rank)], device="meta")
    rest = tuple(track.node.args[1:])
    permute: Any = track.node.target
    made = permute(probe, *rest, **track.node.kwargs)
    dims = [stride.bit_length() - 1 for stride in made.stride()]
    return _moved(track, source, dims)


def _reshaped(track: Track, source: fx.Node | None) -> list[Track]:
    """Through a change of shape that keeps the order of the entries."""
    if source is None:
        return []
    old, new = _shape(source), _shape(track.node)
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
                pick = ((above[-1], outer),) if above else ()
                return [track._replace(node=source, dim=d, start=first, picked=picked + pick)]
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


def _selected(track: Track, dim: int, index: int) -> list[Track]:
    source = _first(track.node)
    if source is None:
        return []
    shape = _shape(source)
    dim %= len(shape)
    dims = [d if d < dim else d + 1 for d in range(len(shape) - 1)]
    moved = _moved(track, source, dims)
    pick = (dim, index % shape[dim])
    return [item._replace(picked=tuple(sorted((*item.picked, pick)))) for item in moved]


def _cut(track: Track, source: fx.Node | None, dim: int, start: int) -> list[Track]:
    """Through a contiguous cut of one dimension."""
    if source is None:
        return []
    shape, made = _shape(source), _shape(track.node)
    dim, start = dim % len(shape), start % max(shape[dim % len(shape)], 1)
    if dim == track.dim:
        return [track._replace(node=source, start=track.start + start)]
    picks = dict(track.picked)
    if dim in picks:
        picks[dim] += start
    elif made[dim] == 1 and shape[dim] > 1:
        picks[dim] = start
    return [track._replace(node=source, picked=tuple(sorted(picks.items())))]


def _from_tuple(track: Track) -> list[Track]:
    """Through one output of a step that gives several."""
    parent, index = track.node.args[0], track.node.args[1]
    if not isinstance(parent, fx.Node) or not isinstance(index, int):
        return []
    name, source = step_name(parent), _first(parent)
    if source is None:
        return []
    if name == "unbind":
        shape = _shape(source)
        dim = int(argument(parent, 1, "dim", 0)) % len(shape)
        dims = [d if d < dim else d + 1 for d in range(len(shape) - 1)]
        moved = _moved(track, source, dims)
        return [item._replace(picked=tuple(sorted((*item.picked, (dim, index))))) for item in moved]
    if name in _SPLIT:
        dim = int(argument(parent, 2, "dim", 0)) % len(_shape(source))
        sizes = {
            user.args[1]: _shape(user)[dim]
            for user in parent.users
            if user.target is operator.getitem and shape_of(user) is not None
        }
        start = sum(size for at, size in sizes.items() if isinstance(at, int) and at < index)
        return _cut(track, source, dim, start) if len(sizes) > index else []
    if name in _REDUCE:
        return _reduced(track, parent)
    if name in MIXING_STEPS:
        return []
    return _same_rank(track, parent)


def _index_items(node: fx.Node) -> tuple[Any, ...]:
    index = node.args[1]
    return tuple(index) if isinstance(index, (tuple, list)) else (index,)


def _indexed(track: Track) -> list[Track]:
    """Through ``x[...]`` with integers, slices, None, an ellipsis and index tensors."""
    node, source = track.node, _first(track.node)
    if source is None:
        return []
    shape = _shape(source)
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
        made = len(_shape(node))
        extra = made - len(dims)
        adjacent = len({position for position, _ in tensor_at}) == 1
        position = tensor_at[0][0] if adjacent else 0
        dims[position:position] = [None] * max(extra, 0)
    if len(dims) != len(_shape(node)):
        return []
    where = dims[track.dim]
    if where is None or starts.get(where, 0) < 0:
        return []
    shifted = track._replace(start=track.start + starts.get(where, 0))
    found = _moved(shifted, source, dims)
    known = [(d, i + max(starts.get(d, 0), 0)) for item in found for d, i in item.picked]
    for d, start in starts.items():
        size = _shape(node)[dims.index(d)]
        if d != where and size == 1 and shape[d] > 1 and start >= 0:
            picks.append((d, start))
    return [item._replace(picked=tuple(sorted({*known, *picks}))) for item in found]


def _is_plain(item: slice) -> bool:
    return all(part is None or isinstance(part, int) for part in (item.start, item.stop, item.step))


def _tensor_list(node: fx.Node) -> list[fx.Node]:
    value = argument(node, 0, "tensors", ())
    if not isinstance(value, (tuple, list)):
        return []
    return [item for item in value if isinstance(item, fx.Node) and shape_of(item) is not None]


def concat_pieces(track: Track) -> list[tuple[Track, int]] | None:
    """Pieces of a concatenation over the channels that hold the channels of a track.

    Returns:
        ``(track of the piece, its number of channels)`` in order; None where the step is no such
        concatenation or repeated channels are spread over several pieces.
    """
    node = track.node
    if node.op == "call_module" or step_name(node) not in _CAT:
        return None
    tensors = _tensor_list(node)
    rank = len(_shape(node))
    if int(argument(node, 1, "dim", 0)) % rank != track.dim:
        return None
    pieces: list[tuple[Track, int]] = []
    offset = 0
    for item in tensors:
        shape = _shape(item)
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
    rank = len(_shape(track.node))
    return [
        track._replace(node=item) for item in _tensor_list(track.node) if len(_shape(item)) == rank
    ]


def _stacked(track: Track) -> list[Track]:
    node = track.node
    dim = int(argument(node, 1, "dim", 0)) % len(_shape(node))
    if dim == track.dim:
        return []
    dims = [d if d < dim else d - 1 for d in range(len(_shape(node)))]
    picked = dict(track.picked)
    chosen = [picked.pop(dim)] if dim in picked else None
    rest = tuple(sorted((d, index) for d, index in picked.items()))
    tensors = _tensor_list(node)
    moved = track._replace(picked=rest)
    return [
        found
        for index, item in enumerate(tensors)
        if chosen is None or index in chosen
        for found in _moved(moved, item, dims)
    ]


def _reduced(track: Track, node: fx.Node) -> list[Track]:
    source = _first(node)
    if source is None:
        return []
    old, new = _shape(source), _shape(track.node)
    if len(operands(node)) > 1:
        return _broadcast(track)
    if len(old) == len(new):
        return [track._replace(node=source)] if old[track.dim] == new[track.dim] else []
    given = argument(node, 1, "dim", node.kwargs.get("axis"))
    if given is None:
        return []
    gone = {d % len(old) for d in (given if isinstance(given, (tuple, list)) else (given,))}
    kept = [d for d in range(len(old)) if d not in gone]
    return _moved(track, source, kept) if len(kept) == len(new) else []


def _written(track: Track) -> list[Track]:
    """Through ``x[...] = value``: what was there before, and what was written."""
    node = track.node
    found = _aligned(track, _first(node))
    value = argument(node, 2, "value")
    if isinstance(value, fx.Node) and shape_of(value) is not None:
        found += _aligned(track, value)
    return found


def _aligned(track: Track, source: fx.Node | None) -> list[Track]:
    """An input whose dimensions are matched from the right."""
    if source is None:
        return []
    old, new = _shape(source), _shape(track.node)
    dim = track.dim - (len(new) - len(old))
    if dim < 0 or old[dim] != new[track.dim]:
        return []
    shift = len(new) - len(old)
    picked = tuple((d - shift, i) for d, i in track.picked if d >= shift and old[d - shift] > i)
    return [track._replace(node=source, dim=dim, picked=picked)]


def _broadcast(track: Track) -> list[Track]:
    new = _shape(track.node)
    found = [item for source in operands(track.node) for item in _aligned(track, source)]
    full = [item for item in found if math.prod(_shape(item.node)) == math.prod(new)]
    return full or found


def _same_rank(track: Track, step: fx.Node | None = None) -> list[Track]:
    """Through a step that leaves the rank and the size of the channel dimension alone."""
    new = _shape(track.node)
    return [
        track._replace(node=source)
        for source in operands(step or track.node)
        if len(_shape(source)) == len(new) and _shape(source)[track.dim] == new[track.dim]
    ]


def forward_tracks(track: Track) -> Iterator[Track]:
    """Where the channels of a tensor lie in the tensors made from it, one step on.

    Only one-to-one moves are followed: all the channels as one run (``repeats == 1``).
    """
    for user in track.node.users:
        outputs = [user] if shape_of(user) is not None else list(user.users)
        for made in outputs:
            shape = shape_of(made)
            if shape is None:
                continue
            yield from _forward(track, made, shape)


def _forward(track: Track, made: fx.Node, shape: tuple[int, ...]) -> Iterator[Track]:
    width = _shape(track.node)[track.dim]
    name = step_name(made)
    if name in _CAT:
        offset = 0
        for item in _tensor_list(made):
            if item is track.node and int(argument(made, 1, "dim", 0)) % len(shape) == track.dim:
                yield track._replace(node=made, start=offset + track.start, picked=())
                return
            offset += _shape(item)[track.dim] if len(_shape(item)) == len(shape) else 0
    for dim, size in enumerate(shape):
        if size > width or size < track.channels:
            continue
        whole = Track(made, dim, 0, size)
        for back in step_back(whole):
            if back.node is not track.node or back.dim != track.dim or back.repeats != 1:
                continue
            if back.start <= track.start and track.stop <= back.start + size:
                yield track._replace(node=made, dim=dim, start=track.start - back.start, picked=())
                return
