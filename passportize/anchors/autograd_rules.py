"""Walk the autograd graph of a forward pass from a tensor to the weights behind it."""

from __future__ import annotations

import functools
import heapq
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from passportize.anchors.trail import TAKEN, Attempt, Log, Met, Step
from passportize.anchors.weight_parts import part_of
from passportize.signature.rows import anchor_width
from passportize.signature.site import AnchorPart
from passportize.tracing.operations import CAT_STEPS, Kind, autograd_steps
from passportize.tracing.weight_layers import owns_weight
from passportize.utils.foreign import merged_later

__all__ = ["AutogradSearch"]

# Linear maps; what lies behind their other input is another layer's business.
_PRODUCTS = autograd_steps(Kind.PRODUCT, Kind.MATMUL, Kind.CONVOLUTION, Kind.TRANSPOSED)
_ATTENTION = "scaled_dot_product"  # and then the name of a kernel
# What may lie between a product and the parameter it multiplies by; weight standardisation is done
# with a batch norm.
_WITHIN_WEIGHTS = autograd_steps(
    *(Kind.PERMUTE, Kind.RESHAPE, Kind.BROADCAST, Kind.SLICE, Kind.COPY, Kind.NORM)
)


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
        merged = merged_later(model)
        self._parts: dict[int, AnchorPart] = {}
        for name, module in model.named_modules():
            if name in norms or name in merged or isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
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

    def search(
        self,
        source: Tensor | None,
        result: Any,
        later: Sequence[tuple[nn.Module, Tensor]],
        widths: Sequence[int],
    ) -> list[Attempt]:
        """Look for the anchor of one norm; the last attempt has it, if there is one.

        First the linear map executed last before the norm, without looking behind one; then the
        first linear layer that reads the norm's output, unmixed; then the last weight of fitting
        width behind whatever operations.

        Args:
            source: What the norm was called with.
            result: What it returned.
            later: The linear layers that ran after it, each with its input, in order.
            widths: Acceptable numbers of channels, most wanted first.
        """
        made: list[Attempt] = []
        for attempt in self._attempts(source, result, later, widths):
            made.append(attempt)
            if attempt.parts:
                break
        return made

    def _attempts(
        self,
        source: Tensor | None,
        result: Any,
        later: Sequence[tuple[nn.Module, Tensor]],
        widths: Sequence[int],
    ) -> Iterator[Attempt]:
        node = None if source is None else source.grad_fn
        for width in widths if node is not None else ():
            yield self._nearest(node, width, True)
        if isinstance(result, Tensor):
            yield self._downstream(result, later, widths)
        for width in widths if node is not None else ():
            yield self._nearest(node, width, False)

    def _nearest(self, start: Any, width: int, blocked: bool) -> Attempt:
        """Search for a width, or for any width (the first weight met) if ``width`` is 0.

        Operations are visited in reverse order of execution, which is what autograd numbers them
        by, so the weight used last is found first.

        Args:
            start: The operation that made the norm's input.
            width: The number of channels.
            blocked: Whether to look no further than the linear maps met first.
        """
        log = Log()
        seen, pushed, rule = {start}, 0, "upstream" if blocked else "anywhere upstream"
        path: tuple[Step, ...] = ()
        heap = [(-_executed_at(start), 0, start, path)]
        while heap:
            _, _, node, path = heapq.heappop(heap)
            step, product = Step(_step_name(node)), _is_product(node)
            if _step_name(node) in CAT_STEPS:
                log.add(self._joined(node, width, path))
                if log.end is not None:
                    break
            part = self._multiplied(node, width) if product or not blocked else None
            if part is not None:
                log.add(Met(step, TAKEN, part.weight, path, (part,)))
                break
            if product:
                log.add(self._refused(node, width, path))
                if blocked:
                    continue
            for ahead, _ in node.next_functions:
                if ahead is not None and ahead not in seen:
                    seen.add(ahead)
                    pushed += 1
                    heapq.heappush(heap, (-_executed_at(ahead), pushed, ahead, (step, *path)))
        return log.attempt("autograd", rule, width, None, Step(_step_name(start)))

    def _refused(self, node: Any, width: int, path: tuple[Step, ...]) -> Met:
        """A linear map that makes another number of channels, or is by no weight."""
        step, part = Step(_step_name(node)), self._multiplied(node, 0)
        if part is None:
            return Met(step, "it multiplies by no weight of a linear layer", crossed=path)
        why = f"it has {part.channels} channels on that side, not {width}"
        return Met(step, why, part.weight, path)

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

    def _joined(self, node: Any, width: int, path: tuple[Step, ...]) -> Met:
        """What a concatenation joins, if that makes up a width; else why not."""
        step = Step("cat")
        pieces: list[Attempt] = []
        for ahead, _ in node.next_functions:
            if ahead is not None:
                pieces.append(self._nearest(ahead, 0, True))
            if ahead is None or not pieces[-1].parts:
                return Met(step, "a piece of it leads to no weight", "", path, (), (*pieces,))
        parts = tuple(part for piece in pieces for part in piece.parts)
        total = sum(part.channels for part in parts)
        if width not in (0, total) or len(parts) < 2:
            why = f"its pieces have {total} channels together, not {width}"
            return Met(step, why, "", path, (), tuple(pieces))
        return Met(step, TAKEN, "", (step, *path), parts, tuple(pieces))

    def _downstream(
        self, result: Tensor, later: Sequence[tuple[nn.Module, Tensor]], widths: Sequence[int]
    ) -> Attempt:
        target = result.grad_fn
        log = Log()
        for module, source in later:
            part = self._parts.get(id(module._parameters.get("weight")))
            if part is None or target is None or source.grad_fn is None:
                continue
            shape = self._shapes[id(module._parameters["weight"])]
            read = replace(part, axis="input")
            made = anchor_width(shape, read)
            if made not in widths:
                continue
            if self._reaches(source.grad_fn, target):
                found = replace(read, channels=made)
                log.add(Met(None, TAKEN, part.weight, parts=(found,)))
                break
            log.add(Met(None, "it does not read the output of the norm, unmixed", part.weight))
        if log.end is None and not log.met:
            wanted = " or ".join(map(str, widths))
            log.add(Met(None, f"no linear layer that runs later reads {wanted} channels"))
        return log.attempt("autograd", "downstream", next(iter(widths), 0), None, Step("norm"))

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
