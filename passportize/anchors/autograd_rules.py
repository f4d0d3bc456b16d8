"""Walk the autograd graph of a forward pass from a tensor to the weights behind it."""

from __future__ import annotations

import functools
import heapq
import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from passportize.anchors.weight_table import part_of
from passportize.signature.rows import anchor_width
from passportize.signature.site import Anchor, AnchorPart
from passportize.tracing.operations import CAT_STEPS, Kind, autograd_steps
from passportize.tracing.weight_layers import owns_weight

__all__ = ["AutogradSearch"]

# Linear maps; what lies behind their other input is another layer's business.
_PRODUCTS = autograd_steps(Kind.PRODUCT, Kind.MATMUL, Kind.CONVOLUTION, Kind.TRANSPOSED)
_ATTENTION = "scaled_dot_product"  # and then the name of a kernel
# What may lie between a product and the parameter it multiplies by; weight standardisation is done
# with a batch norm.
_WITHIN_WEIGHTS = autograd_steps(
    *(Kind.PERMUTE, Kind.RESHAPE, Kind.BROADCAST, Kind.SLICE, Kind.COPY, Kind.NORM)
)


_Found = tuple[tuple[AnchorPart, ...], tuple[str, ...]]


def _step_name(node: Any) -> str:
    """Plain name of a backward node: ``"add"`` for ``AddBackward0``."""
    return _plain(node.name())


@functools.cache
def _plain(name: str) -> str:
    name = re.sub(r"Backward(AutogradNestedTensor)?\d*$", "", name)
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _is_product(node: Any) -> bool:
    name = _step_name(node)
    return name in _PRODUCTS or name.startswith(_ATTENTION)


def _executed_at(node: Any) -> int:
    """Order of execution; parameters, which autograd numbers last, come first."""
    return -1 if hasattr(node, "variable") else int(node._sequence_nr())


class AutogradSearch:
    """Walks over the autograd graph of one forward pass."""

    def __init__(self, model: nn.Module, norms: Collection[str]) -> None:
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._parts: dict[int, AnchorPart] = {}
        for name, module in model.named_modules():
            if name in norms or isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
                continue
            for key, parameter in module._parameters.items():
                if parameter is None or parameter.dim() < 2 or id(parameter) in self._parts:
                    continue
                if not (owns_weight(module) and key == "weight"):
                    continue
                part = part_of(module, names[id(parameter)])
                front = (part.expert_shape or parameter.shape)[:1]
                if not nn.parameter.is_lazy(parameter) and front[0] % part.groups:
                    continue  # another layout than that of a convolution
                self._parts[id(parameter)] = part
        self._shapes = {
            id(parameter): tuple(parameter.shape)
            for parameter in model.parameters()
            if not nn.parameter.is_lazy(parameter)
        }

    def upstream(
        self, source: Tensor | None, widths: Sequence[int], blocked: bool
    ) -> Anchor | None:
        """The last weight that makes the channels of a tensor.

        Args:
            source: The tensor.
            widths: Acceptable numbers of channels.
            blocked: Whether to look no further than the linear maps met first.
        """
        node = None if source is None else source.grad_fn
        if node is None:
            return None
        for width in widths:
            found = self._nearest(node, width, blocked)
            if found is not None:
                return Anchor(found[0], "autograd", found[1])
        return None

    def _nearest(self, start: Any, width: int, blocked: bool) -> _Found | None:
        """Parts for a width, or for any width (the first weight met) if ``width`` is 0.

        With them the steps that were crossed, nearest to the weight first.

        Operations are visited in reverse order of execution, which is what autograd numbers them
        by, so the weight used last is found first.
        """
        seen, pushed = {start}, 0
        none: tuple[str, ...] = ()
        heap = [(-_executed_at(start), 0, start, none)]
        while heap:
            _, _, node, path = heapq.heappop(heap)
            if blocked and _is_product(node):
                part = self._multiplied(node, width)
                if part is not None:
                    return (part,), path
                continue
            if _step_name(node) in CAT_STEPS:
                joined = self._joined(node, width)
                if joined is not None:
                    return joined, ("cat", *path)
            part = None if blocked else self._multiplied(node, width)
            if part is not None:
                return (part,), path
            further = (_step_name(node), *path)
            for ahead, _ in node.next_functions:
                if ahead is not None and ahead not in seen:
                    seen.add(ahead)
                    pushed += 1
                    heapq.heappush(heap, (-_executed_at(ahead), pushed, ahead, further))
        return None

    def _parameter(self, node: Any, width: int) -> AnchorPart | None:
        variable = getattr(node, "variable", None)
        part = self._parts.get(id(variable))
        if part is None:
            return None
        made = anchor_width(self._shapes[id(variable)], part)
        if width not in (0, made):
            return None
        return replace(part, channels=made)

    def _is_mixture(self, node: Any) -> bool:
        """Whether a node is a parameter of flattened kernels, of which mixtures are used."""
        part = self._parts.get(id(getattr(node, "variable", None)))
        return part is not None and bool(part.expert_shape)

    def _multiplied(self, node: Any, width: int) -> AnchorPart | None:
        """The weight that a product multiplies by, behind layout changes of the weight."""
        level = [ahead for ahead, _ in node.next_functions if ahead is not None]
        for _ in range(8):
            following: list[Any] = []
            for item in level:
                part = self._parameter(item, width)
                if part is not None:
                    return part
                ahead_of = [ahead for ahead, _ in item.next_functions if ahead is not None]
                if _step_name(item) in _WITHIN_WEIGHTS:
                    following += ahead_of
                elif _step_name(item) == "mm":
                    following += [ahead for ahead in ahead_of if self._is_mixture(ahead)]
            level = following
        return None

    def _joined(self, node: Any, width: int) -> tuple[AnchorPart, ...] | None:
        parts: list[AnchorPart] = []
        for ahead, _ in node.next_functions:
            found = self._nearest(ahead, 0, True) if ahead is not None else None
            if found is None:
                return None
            parts += found[0]
        total = sum(part.channels for part in parts)
        return tuple(parts) if width in (0, total) and len(parts) > 1 else None

    def downstream(
        self, result: Tensor, later: Sequence[tuple[nn.Module, Tensor]], widths: Sequence[int]
    ) -> Anchor | None:
        """First linear layer executed after a norm that reads its output, unmixed."""
        target = result.grad_fn
        for module, source in later:
            part = self._parts.get(id(module._parameters.get("weight")))
            if part is None or target is None or source.grad_fn is None:
                continue
            shape = self._shapes[id(module._parameters["weight"])]
            read = replace(part, axis="input")
            made = anchor_width(shape, read)
            if made in widths and self._reaches(source.grad_fn, target):
                return Anchor((replace(read, channels=made),), "autograd")
        return None

    def _reaches(self, start: Any, target: Any) -> bool:
        level, seen = [start], {start}
        while level:
            following: list[Any] = []
            for node in level:
                if node is target:
                    return True
                if _is_product(node):
                    continue
                for ahead, _ in node.next_functions:
                    if ahead is not None and ahead not in seen:
                        seen.add(ahead)
                        following.append(ahead)
            level = following
        return False
