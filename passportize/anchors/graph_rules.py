"""The rules that bind a norm to a weight, on a recorded graph."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import fx, nn

from passportize.anchors.graph_trail import (
    AFTER,
    AGAIN,
    BEFORE,
    OTHER,
    UNREAD,
    answered,
    dead_end,
    searched,
    step_of,
    steps_of,
)
from passportize.anchors.step_back import concat_pieces, step_back
from passportize.anchors.step_forward import forward_tracks
from passportize.anchors.track import Track, channel_dims
from passportize.anchors.trail import TAKEN, Attempt, Log, Met, Step
from passportize.anchors.weight_table import WeightTable
from passportize.signature.site import Anchor, AnchorPart
from passportize.tracing.graph import operands, shape_of, step_name
from passportize.tracing.operations import Kind, steps

__all__ = ["AnchorRules"]

_FUNCTIONAL_NORMS = steps(Kind.NORM)


_Path = tuple[fx.Node, ...]
_CIRCLE = Attempt("fx-meta", "upstream", met=(Met(None, "it leads back to itself"),))
# Heap entries: execution order (negative upwards), steps, a running number, track and path.
_Upward = tuple[int, int, int, Track, _Path]
_Downward = tuple[int, int, Track, _Path]


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

    Attributes:
        norms: The steps that are norms, by name.
        rows: Length of the batch that the graph was recorded with, 0 where it is not known.
        attempts: What was tried for each norm that an anchor was asked for.
    """

    def __init__(self, graph: fx.Graph, table: WeightTable) -> None:
        self._table = table
        self._order = {node: index for index, node in enumerate(graph.nodes)}
        self._known: dict[Track, Attempt] = {}
        # Tracks that lead nowhere, so that many norms without an anchor cost no more than one; with
        # the norm that they were searched for.
        self._unmade: dict[Track, str] = {}
        self._unread: dict[Track, str] = {}
        self._asked = ""
        self.attempts: dict[str, list[Attempt]] = {}
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
        self._asked = name
        made = self.attempts[name] = []
        for attempt in self._search(self.norms[name], module, widths):
            made.append(attempt)
            if attempt.parts:
                return attempt.anchor
        return None

    def _search(self, node: fx.Node, module: nn.Module, widths: Sequence[int]) -> Iterator[Attempt]:
        source = _tensor_argument(node)
        if source is None:
            unknown = Met(None, "the shape of what the norm is called with is not known")
            yield Attempt("fx-meta", "upstream", met=(unknown,))
            return
        shape = shape_of(source) or ()
        starts: list[Track] = []
        for width in widths:
            dims = channel_dims(module, shape, width)
            starts += [Track(source, dim, 0, width) for dim in dims]
            if not dims:
                missing = Met(step_of(source), f"no dimension of {shape} counts {width} channels")
                yield Attempt("fx-meta", "upstream", width, start=missing.step, met=(missing,))
        for track in starts:
            yield self._upstream(track)
        for track in starts:
            yield self._downstream(track._replace(node=node))

    def input_shape(self, name: str) -> tuple[int, ...]:
        """Shape of what a norm of :attr:`norms` is called with; empty if that is not known."""
        source = _tensor_argument(self.norms[name])
        return () if source is None else shape_of(source) or ()

    def _upstream(self, start: Track) -> Attempt:
        if start in self._known:
            return self._known[start]
        self._known[start] = _CIRCLE
        log = Log()
        seen = {start}
        heap: list[_Upward] = [(-self._order[start.node], 0, 0, start, ())]
        pushed = 0
        track = start
        while heap and log.end is None:
            _, steps, _, track, path = heapq.heappop(heap)
            met = self._end(track, path)
            if met is not None:
                log.add(met)
                continue
            further = (track.node, *path)
            behind = step_back(track)
            if not behind:
                log.add(dead_end(track.node, path))
            elif len(track.node.all_input_nodes) > len(behind):
                self._pass_over(track.node, behind, further, log)
            for back in behind:
                if back in self._unmade:
                    log.add(searched(back.node, self._unmade[back], further))
                elif back not in seen:
                    seen.add(back)
                    pushed += 1
                    entry = (-self._order[back.node], steps + 1, pushed, back, further)
                    heapq.heappush(heap, entry)
        if log.end is None:
            self._unmade |= dict.fromkeys(seen, self._asked)
        for *_, left, path in sorted(heap):
            verdict = AGAIN if left.node is track.node else BEFORE
            log.add(self._left_out(left.node, verdict, path))
        made = _attempt("upstream", start, log)
        self._known[start] = made
        return made

    def _end(self, track: Track, path: _Path) -> Met | None:
        """What the search found where it ends at a step; None where it goes on."""
        answer = self._table.producer(track)
        if answer is not None:
            return answered(track.node, answer, path)
        pieces = concat_pieces(track)
        if pieces is None or len(pieces) == 1:
            return None
        step, crossed = step_of(track.node), steps_of(path)
        attempts: list[Attempt] = []
        parts: list[AnchorPart] = []
        for piece, _ in pieces:
            attempt = self._upstream(piece)
            attempts.append(attempt)
            if attempt.end is None:
                return Met(step, "a piece of it leads to no weight", "", crossed, (), (*attempts,))
            parts += attempt.end.parts
        joined = Step("cat", step.where)
        return Met(step, TAKEN, "", (joined, *crossed), tuple(parts), tuple(attempts))

    def _downstream(self, start: Track) -> Attempt:
        log = Log()
        if start in self._unread:
            log.add(searched(start.node, self._unread[start], ()))
            return _attempt("downstream", start, log)
        seen = {start}
        best: tuple[int, Met] | None = None
        heap: list[_Downward] = [(self._order[start.node], 0, start, ())]
        pushed = 0
        while heap and (best is None or heap[0][0] < best[0]):
            _, _, track, path = heapq.heappop(heap)
            told: set[fx.Node] = set()
            for user in track.node.users:
                if best is not None and self._order[user] >= best[0]:
                    continue
                answer = self._table.consumer(track, user)
                if answer is None:
                    continue
                told.add(user)
                met = answered(user, answer, path)
                if met.parts:
                    if best is not None:
                        log.add(replace(best[1], verdict=AFTER, parts=()))
                    best = (self._order[user], met)
                else:
                    log.add(met)
            for ahead in forward_tracks(track):
                told |= {ahead.node, *ahead.node.all_input_nodes}
                if ahead in self._unread:
                    log.add(searched(ahead.node, self._unread[ahead], path))
                elif ahead not in seen:
                    seen.add(ahead)
                    pushed += 1
                    entry = (self._order[ahead.node], pushed, ahead, (ahead.node, *path))
                    heapq.heappush(heap, entry)
            if best is None:
                for user in track.node.users:
                    if user not in told:
                        log.add(dead_end(user, path))
                if not track.node.users:
                    log.add(Met(step_of(track.node), UNREAD, crossed=steps_of(path[1:])))
        if best is None:
            self._unread |= dict.fromkeys(seen, self._asked)
        else:
            log.add(best[1])
        for *_, left, path in sorted(heap):
            log.add(self._left_out(left.node, AFTER, path[1:]))
        return _attempt("downstream", start, log)

    def _pass_over(self, node: fx.Node, behind: list[Track], path: _Path, log: Log) -> None:
        """Note the operands of a step that are not followed: gates, pieces that were cut off."""
        followed = {track.node for track in behind}
        for source in operands(node):
            if source not in followed and source.op != "get_attr":
                log.add(self._left_out(source, OTHER, path))

    def _left_out(self, node: fx.Node, verdict: str, path: _Path) -> Met:
        """A step that the search does not look at any more."""
        return Met(step_of(node), verdict, self._table.weight_of(node), steps_of(path))


def _attempt(rule: str, start: Track, log: Log) -> Attempt:
    return log.attempt("fx-meta", rule, start.channels, start.dim, step_of(start.node))


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
