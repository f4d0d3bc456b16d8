"""The rules that bind a norm to a weight, on a recorded graph."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

from torch import fx, nn

from passportize.anchors.step_back import concat_pieces, step_back
from passportize.anchors.step_forward import forward_tracks
from passportize.anchors.track import Track
from passportize.anchors.weight_table import WeightTable
from passportize.signature.site import Anchor, AnchorPart
from passportize.tracing.graph import shape_of, step_name
from passportize.tracing.operations import Kind, steps

__all__ = ["AnchorRules"]

_FUNCTIONAL_NORMS = steps(Kind.NORM)


class _Found(NamedTuple):
    parts: tuple[AnchorPart, ...]
    crossed: tuple[str, ...]


# Heap entries: execution order (negative upwards), steps, a running number, track and path.
_Upward = tuple[int, int, int, Track, tuple[str, ...]]
_Downward = tuple[int, int, Track, tuple[str, ...]]


class AnchorRules:
    """Finds anchors in one graph.

    A norm that is called more than once is bound by its first call.

    *Upstream.* From the input of the norm, steps that carry its channels on are crossed backwards:
    layout, pooling, activations, dropout, other norms, sums and products of tensors, concatenation
    over another dimension (a class token). Where a sum or product has an operand of the full
    shape, operands that are broadcast (gates, biases) are not followed. Nothing is looked for
    behind a linear map. Of the linear maps by a parameter that are reached and whose output
    channels are (or contain) the norm's, the one executed last is taken: after a residual sum that
    is the end of the last branch. Where it is reached in several ways (both halves of a gated
    unit), the one over the fewest steps counts, then the first operand.

    *Concat.* A concatenation over the channels counts as one such map if every piece that the
    channels come from leads to one by the same rule.

    *Downstream.* If upstream finds nothing, the same forwards from the output of the norm, through
    steps that move the channels as one run or lay heads that share the norm side by side: the
    linear map executed first that reads them.

    Args:
        graph: From :func:`passportize.tracing.recorder.record_graph`.
        table: The weights of the model.
    """

    def __init__(self, graph: fx.Graph, table: WeightTable) -> None:
        self._table = table
        self._order = {node: index for index, node in enumerate(graph.nodes)}
        self._known: dict[Track, _Found | None] = {}
        # Tracks that lead nowhere, so that many norms without an anchor cost no more than one.
        self._unmade: set[Track] = set()
        self._unread: set[Track] = set()
        self.norms: dict[str, fx.Node] = {}
        self.rows = _rows(graph)
        for node in graph.nodes:
            if node.op == "call_module" and node.meta.get("kind") == "norm":
                self.norms.setdefault(str(node.target), node)
            elif node.op == "call_function" and step_name(node) in _FUNCTIONAL_NORMS:
                # A norm whose forward was called directly, or whose parameters were used.
                for name in _owners(node):
                    self.norms.setdefault(name, node)

    def anchor(self, name: str, module: nn.Module, widths: Sequence[int]) -> Anchor | None:
        """The anchor of a norm that the graph calls, None where no rule finds one.

        Args:
            name: Name of the norm, one of :attr:`norms`.
            module: The norm.
            widths: Channel counts that are acceptable, most wanted first.
        """
        node = self.norms[name]
        source = _tensor_argument(node)
        if source is None:
            return None
        shape = shape_of(source) or ()
        starts = [
            Track(source, dim, 0, width)
            for width in widths
            for dim in _channel_dims(module, shape, width)
        ]
        for track in starts:
            found = self._upstream(track)
            if found is not None:
                rule = "concat" if len(found.parts) > 1 else "upstream"
                return Anchor(found.parts, rule, found.crossed)
        for track in starts:
            found = self._downstream(track._replace(node=node))
            if found is not None:
                return Anchor(found.parts, "downstream", found.crossed)
        return None

    def input_shape(self, name: str) -> tuple[int, ...]:
        """Shape of what a norm of :attr:`norms` is called with; empty if that is not known."""
        source = _tensor_argument(self.norms[name])
        return () if source is None else shape_of(source) or ()

    def _upstream(self, start: Track) -> _Found | None:
        if start in self._known:
            return self._known[start]
        self._known[start] = None  # a part can't lead back to itself
        found: _Found | None = None
        seen = {start}
        heap: list[_Upward] = [(-self._order[start.node], 0, 0, start, ())]
        pushed = 0
        while heap and found is None:
            _, steps, _, track, path = heapq.heappop(heap)
            ends, found = self._end(track, path)
            if ends:
                continue
            further = (step_name(track.node), *path)
            for back in step_back(track):
                if back not in seen and back not in self._unmade:
                    seen.add(back)
                    pushed += 1
                    entry = (-self._order[back.node], steps + 1, pushed, back, further)
                    heapq.heappush(heap, entry)
        if found is None:
            self._unmade |= seen
        self._known[start] = found
        return found

    def _end(self, track: Track, path: tuple[str, ...]) -> tuple[bool, _Found | None]:
        """Whether the search ends at a step, and what it found there."""
        ends, part = self._table.producer(track)
        if ends:
            return True, None if part is None else _Found((part,), path)
        pieces = concat_pieces(track)
        if pieces is None or len(pieces) == 1:
            return False, None
        parts: list[AnchorPart] = []
        for piece, _ in pieces:
            found = self._upstream(piece)
            if found is None:
                return True, None
            parts += found.parts
        return True, _Found(tuple(parts), ("cat", *path))

    def _downstream(self, start: Track) -> _Found | None:
        if start in self._unread:
            return None
        seen = {start}
        best: tuple[int, _Found] | None = None
        heap: list[_Downward] = [(self._order[start.node], 0, start, ())]
        pushed = 0
        while heap:
            order, _, track, path = heapq.heappop(heap)
            if best is not None and order >= best[0]:
                break
            for user in track.node.users:
                if best is None or self._order[user] < best[0]:
                    part = self._table.consumer(track, user)
                    if part is not None:
                        best = (self._order[user], _Found((part,), path))
            for ahead in forward_tracks(track):
                if ahead not in seen and ahead not in self._unread:
                    seen.add(ahead)
                    pushed += 1
                    further = (step_name(ahead.node), *path)
                    heapq.heappush(heap, (self._order[ahead.node], pushed, ahead, further))
        if best is None:
            self._unread |= seen
            return None
        return best[1]


def _rows(graph: fx.Graph) -> int:
    """Length of the batch that the graph was recorded with, 0 where it is not known."""
    for node in graph.nodes:
        if node.op == "placeholder" and (shape := shape_of(node)):
            return shape[0]
    return 0


def _owners(node: fx.Node) -> list[str]:
    """Modules whose ``weight`` a step reads."""
    names = [str(item.target) for item in node.all_input_nodes if item.op == "get_attr"]
    return [name.rpartition(".")[0] for name in names if name.endswith(".weight")]


def _tensor_argument(node: fx.Node) -> fx.Node | None:
    for value in (*node.args, *node.kwargs.values()):
        if isinstance(value, fx.Node) and shape_of(value) is not None:
            return value
    return None


def _channel_dims(module: nn.Module, shape: Sequence[int], width: int) -> list[int]:
    """Dimensions of the input that may count the channels, the likeliest first."""
    rank = len(shape)
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and len(module.normalized_shape) > 1:
        order = list(range(rank - len(module.normalized_shape), rank))
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and rank != 4:
        order = [rank - 1]
    elif isinstance(module, (nn.modules.batchnorm._NormBase, nn.GroupNorm)):
        order = [1, rank - 1, 0]
    elif rank >= 4:
        order = [1, rank - 1] if not isinstance(module, nn.LayerNorm) else [rank - 1, 1]
    else:
        order = [rank - 1, 1, 0]
    return [d for d in dict.fromkeys(order) if 0 <= d < rank and shape[d] == width]
