"""The anchor rules for graphs without shapes: widths are all there is to go by."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

from torch import fx, nn

from passportize.anchors.graph_trail import (
    AFTER,
    BEFORE,
    UNREAD,
    answered,
    dead_end,
    step_of,
    steps_of,
)
from passportize.anchors.trail import TAKEN, Attempt, Log, Met, Step
from passportize.anchors.weight_parts import UNKNOWN, Refusal
from passportize.anchors.weight_table import WeightTable
from passportize.signature.site import Anchor, AnchorPart
from passportize.tracing.graph import argument, step_name
from passportize.tracing.operations import CAT_STEPS, MIXING_STEPS

__all__ = ["WidthRules"]

_Path = tuple[fx.Node, ...]
_Upward = tuple[int, int, int, fx.Node, _Path]
_Downward = tuple[int, fx.Node, _Path]


class WidthRules:
    """Finds anchors in a graph of which only the modules are known.

    The same as :class:`~passportize.anchors.graph_rules.AnchorRules`, except that a linear layer
    fits if its number of outputs is that of the norm, wherever the channels are. A concatenation
    joins channels if the outputs of what it joins add up to the norm's; else it is crossed.

    Args:
        graph: From :func:`passportize.tracing.symbolic.trace_leaves`.
        table: The weights of the model.

    Attributes:
        norms: The steps that are norms, by name.
        attempts: What was tried for each norm that an anchor was asked for.
    """

    def __init__(self, graph: fx.Graph, table: WeightTable) -> None:
        self._table = table
        self._order = {node: index for index, node in enumerate(graph.nodes)}
        self.attempts: dict[str, list[Attempt]] = {}
        self.norms: dict[str, fx.Node] = {}
        for node in graph.nodes:
            if node.op == "call_module" and node.meta.get("kind") == "norm":
                self.norms.setdefault(str(node.target), node)

    def anchor(self, name: str, module: nn.Module, widths: Sequence[int]) -> Anchor | None:
        """The anchor of a norm that the graph calls, None where no rule finds one."""
        made = self.attempts[name] = []
        for attempt in self._search(self.norms[name], widths):
            made.append(attempt)
            if attempt.parts:
                return attempt.anchor
        return None

    def _search(self, node: fx.Node, widths: Sequence[int]) -> Iterator[Attempt]:
        if not node.all_input_nodes:
            unknown = Met(None, "it is not known what the norm is called with")
            yield Attempt("fx-leaf", "upstream", met=(unknown,))
            return
        for width in widths:
            yield self._upstream(node.all_input_nodes[0], width)
        for width in widths:
            yield self._downstream(node, width)

    def _upstream(self, start: fx.Node, width: int) -> Attempt:
        """Search for a width, or for the first linear layer met if ``width`` is 0."""
        log = Log()
        seen, pushed = {start}, 0
        level: list[_Upward] = [(-self._order[start], 0, 0, start, ())]
        while level:
            _, steps, _, node, path = heapq.heappop(level)
            if node.op == "call_module" and node.meta.get("kind") == "weight":
                log.add(answered(node, self._rows(node, width, "output"), path))
                if log.end is not None:
                    break
                continue
            if not self._is_crossed(node):
                log.add(_closed(node, path))
                continue
            if step_name(node) in CAT_STEPS:
                log.add(self._joined(node, width, path))
                if log.end is not None:
                    break
            for source in node.all_input_nodes:
                if source not in seen:
                    seen.add(source)
                    pushed += 1
                    entry = (-self._order[source], steps + 1, pushed, source, (node, *path))
                    heapq.heappush(level, entry)
        for *_, node, path in sorted(level):
            log.add(Met(step_of(node), BEFORE, self._table.weight_of(node), steps_of(path)))
        return log.attempt("fx-leaf", "upstream", width, None, step_of(start))

    def _rows(self, node: fx.Node, width: int, axis: str) -> AnchorPart | Refusal:
        part = self._table.whole(str(node.target), axis)
        if part is None:
            return Refusal("its weight is computed from other parameters")
        if width in (0, part.channels):
            return part
        return Refusal(f"it has {part.channels} channels on that side, not {width}", part.weight)

    def _is_crossed(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            kind = node.meta.get("kind")
            return kind == "norm" or not self._table.has_weights(str(node.target))
        return node.op in ("call_function", "call_method") and step_name(node) not in MIXING_STEPS

    def _joined(self, node: fx.Node, width: int, path: _Path) -> Met:
        """What a concatenation joins, if that makes up a width; else why not."""
        step, crossed = step_of(node), steps_of(path)
        tensors = argument(node, 0, "tensors", ())
        if not isinstance(tensors, (tuple, list)) or len(tensors) < 2:
            return Met(step, "it is not known what it joins", crossed=crossed)
        pieces: list[Attempt] = []
        for item in tensors:
            if isinstance(item, fx.Node):
                pieces.append(self._upstream(item, 0))
            if not isinstance(item, fx.Node) or not pieces[-1].parts:
                return Met(step, "a piece of it leads to no weight", "", crossed, (), (*pieces,))
        parts = tuple(part for piece in pieces for part in piece.parts)
        total = sum(part.channels for part in parts)
        if width not in (0, total):
            why = f"its pieces have {total} channels together, not {width}"
            return Met(step, why, "", crossed, (), tuple(pieces))
        return Met(step, TAKEN, "", (Step("cat", step.where), *crossed), parts, tuple(pieces))

    def _downstream(self, start: fx.Node, width: int) -> Attempt:
        log = Log()
        seen = {start}
        # No two nodes have the same order, so nodes themselves are never compared.
        level: list[_Downward] = [(self._order[start], start, ())]
        while level and log.end is None:
            _, node, path = heapq.heappop(level)
            if node.op == "call_module" and node.meta.get("kind") == "weight":
                log.add(answered(node, self._rows(node, width, "input"), path))
                continue
            if node is not start and (not self._is_crossed(node) or step_name(node) in CAT_STEPS):
                log.add(_closed(node, path))
                continue
            further = path if node is start else (node, *path)
            if not node.users:
                log.add(Met(step_of(node), UNREAD, crossed=steps_of(path)))
            for user in node.users:
                if user not in seen:
                    seen.add(user)
                    heapq.heappush(level, (self._order[user], user, further))
        for _, node, path in sorted(level):
            log.add(Met(step_of(node), AFTER, self._table.weight_of(node), steps_of(path)))
        return log.attempt("fx-leaf", "downstream", width, None, step_of(start))


def _closed(node: fx.Node, path: _Path) -> Met:
    """A step that is not crossed."""
    return answered(node, UNKNOWN, path) if node.op == "call_module" else dead_end(node, path)
