"""The anchor rules for graphs without shapes: widths are all there is to go by."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from torch import fx, nn

from passportize.anchors.weight_table import WeightTable
from passportize.signature.site import Anchor, AnchorPart
from passportize.tracing.graph import argument, step_name
from passportize.tracing.operations import CAT_STEPS, MIXING_STEPS

__all__ = ["WidthRules"]

_Upward = tuple[int, int, int, fx.Node, tuple[str, ...]]


class WidthRules:
    """Finds anchors in a graph of which only the modules are known.

    The same as :class:`~passportize.anchors.graph_rules.AnchorRules`, except that a linear layer
    fits if its number of outputs is that of the norm, wherever the channels are. A concatenation
    joins channels if the outputs of what it joins add up to the norm's; else it is crossed.

    Args:
        graph: From :func:`passportize.tracing.symbolic.trace_leaves`.
        table: The weights of the model.
    """

    def __init__(self, graph: fx.Graph, table: WeightTable) -> None:
        self._table = table
        self._order = {node: index for index, node in enumerate(graph.nodes)}
        self.norms: dict[str, fx.Node] = {}
        for node in graph.nodes:
            if node.op == "call_module" and node.meta.get("kind") == "norm":
                self.norms.setdefault(str(node.target), node)

    def anchor(self, name: str, module: nn.Module, widths: Sequence[int]) -> Anchor | None:
        """The anchor of a norm that the graph calls, None where no rule finds one."""
        node = self.norms[name]
        if not node.all_input_nodes:
            return None
        for width in widths:
            found = self._upstream(node.all_input_nodes[0], width)
            if found is not None:
                parts, crossed = found
                return Anchor(parts, "concat" if len(parts) > 1 else "upstream", crossed)
        for width in widths:
            below = self._downstream(node, width)
            if below is not None:
                return below
        return None

    def _upstream(
        self, start: fx.Node, width: int
    ) -> tuple[tuple[AnchorPart, ...], tuple[str, ...]] | None:
        """Parts for a width, or for the first linear layer met if ``width`` is 0."""
        seen, pushed = {start}, 0
        level: list[_Upward] = [(-self._order[start], 0, 0, start, ())]
        while level:
            _, steps, _, node, path = heapq.heappop(level)
            if node.op == "call_module" and node.meta.get("kind") == "weight":
                part = self._table.whole(str(node.target), "output")
                if part is not None and width in (0, part.channels):
                    return (part,), path
                continue
            if not self._is_crossed(node):
                continue
            name = step_name(node)
            if name in CAT_STEPS:
                joined = self._joined(node, width)
                if joined is not None:
                    return joined, ("cat", *path)
            for source in node.all_input_nodes:
                if source not in seen:
                    seen.add(source)
                    pushed += 1
                    order = -self._order[source]
                    entry = (order, steps + 1, pushed, source, (name, *path))
                    heapq.heappush(level, entry)
        return None

    def _is_crossed(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            kind = node.meta.get("kind")
            return kind == "norm" or not self._table.has_weights(str(node.target))
        return node.op in ("call_function", "call_method") and step_name(node) not in MIXING_STEPS

    def _joined(self, node: fx.Node, width: int) -> tuple[AnchorPart, ...] | None:
        tensors = argument(node, 0, "tensors", ())
        if not isinstance(tensors, (tuple, list)) or len(tensors) < 2:
            return None
        parts: list[AnchorPart] = []
        for item in tensors:
            found = self._upstream(item, 0) if isinstance(item, fx.Node) else None
            if found is None:
                return None
            parts += found[0]
        total = sum(part.channels for part in parts)
        return tuple(parts) if width in (0, total) else None

    def _downstream(self, start: fx.Node, width: int) -> Anchor | None:
        seen = {start}
        # No two nodes have the same order, so nodes themselves are never compared.
        level: list[tuple[int, fx.Node, tuple[str, ...]]] = [(self._order[start], start, ())]
        while level:
            _, node, path = heapq.heappop(level)
            if node.op == "call_module" and node.meta.get("kind") == "weight":
                part = self._table.whole(str(node.target), "input")
                if part is not None and part.channels == width:
                    return Anchor((part,), "downstream", path)
                continue
            if node is not start and (not self._is_crossed(node) or step_name(node) in CAT_STEPS):
                continue
            further = path if node is start else (step_name(node), *path)
            for user in node.users:
                if user not in seen:
                    seen.add(user)
                    heapq.heappush(level, (self._order[user], user, further))
        return None
