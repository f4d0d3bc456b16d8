"""Finds the weight before each norm from one real forward pass, by walking the autograd graph."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .anchor_rows import anchor_width
from .errors import ExampleInputFailed
from .example_inputs import ExampleInputs
from .model_state import frozen_model, frozen_random_state
from .site import Anchor, AnchorPart
from .weight_steps import is_weight_module

__all__ = ["Walk", "walk_autograd"]

# Backward nodes of linear maps; what lies behind their other input is another layer's business.
_PRODUCTS = (
    "AddmmBackward", "MmBackward", "BmmBackward", "BaddbmmBackward", "ConvolutionBackward",
    "LinearBackward", "MvBackward", "AddmvBackward", "MkldnnConvolutionBackward",
    "CudnnConvolutionBackward", "ConvolutionOverrideableBackward",
    "ScaledDotProduct",
)  # fmt: skip
# Backward nodes between a product and the parameter it multiplies by.
_LAYOUT = (
    "TBackward", "TransposeBackward", "ViewBackward", "UnsafeViewBackward", "PermuteBackward",
    "ExpandBackward", "ReshapeAliasBackward", "SqueezeBackward", "UnsqueezeBackward",
    "ToCopyBackward", "CloneBackward", "AliasBackward", "SliceBackward",
)  # fmt: skip


@dataclass
class Walk:
    """What one real forward pass showed.

    Attributes:
        anchors: Anchor of each norm that has one.
        executed: Names of the norms that ran.
    """

    anchors: dict[str, Anchor] = field(default_factory=dict)
    executed: set[str] = field(default_factory=set)


@dataclass
class _Calls:
    """Tensors seen by the modules of interest, in order of execution."""

    norms: dict[str, tuple[Tensor | None, Any]] = field(default_factory=dict)
    consumers: list[tuple[nn.Module, Tensor]] = field(default_factory=list)
    order: dict[str, int] = field(default_factory=dict)
    stack: list[str] = field(default_factory=list)
    failed_at: str = ""


def walk_autograd(
    model: nn.Module, widths: Mapping[str, Sequence[int]], inputs: ExampleInputs
) -> Walk:
    """Run the model once in eval mode and look for the nearest weight before each norm.

    The walk starts at the input of a norm and takes the linear map by a parameter that was
    executed last, without looking behind one; a concatenation counts as one such map if the widths
    of what it joins add up to the norm's. If that finds no weight of fitting width, the first
    linear layer that reads the norm's output is taken, and failing that the last weight of fitting
    width behind whatever operations.

    Buffers, training flags, ``requires_grad``, cached attributes and random states are put back,
    also after an exception; forward hooks run only if the model does not run without.

    Raises:
        ExampleInputFailed: The model raised an error.
    """
    calls, failure = _run(model, widths, inputs, hooks=False)
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    if failure is not None and hooked:
        calls, failure = _run(model, widths, inputs, hooks=True)
    if failure is not None:
        raise ExampleInputFailed(_message(model, inputs, calls.failed_at, failure)) from failure
    search = _Search(model, set(widths))
    walk = Walk(executed=set(calls.norms))
    for name, (source, result) in calls.norms.items():
        anchor = search.upstream(source, widths[name], blocked=True)
        if anchor is None and isinstance(result, Tensor):
            later = calls.consumers[calls.order[name] :]
            anchor = search.downstream(result, later, widths[name])
        if anchor is None:
            anchor = search.upstream(source, widths[name], blocked=False)
        if anchor is not None:
            walk.anchors[name] = anchor
    return walk


def _message(model: nn.Module, inputs: ExampleInputs, where: str, failure: Exception) -> str:
    first = next(model.parameters(), None)
    devices = {tensor.device for _, tensor in inputs.tensors()}
    advice = "Pass example_inputs= that the model runs on in eval mode."
    if first is not None and devices and devices != {first.device}:
        given = ", ".join(sorted(map(str, devices)))
        advice = f"The model is on {first.device}, the example input on {given}: move one of them."
    place = f"its module {where!r}" if where else "it"
    return (
        f"The model does not run on the example input: {place} raised "
        f"{type(failure).__name__}: {failure}. {advice}"
    )


def _run(
    model: nn.Module, widths: Mapping[str, Sequence[int]], inputs: ExampleInputs, hooks: bool
) -> tuple[_Calls, Exception | None]:
    calls = _Calls()
    failure: Exception | None = None
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with (
        frozen_model(model, values=True),
        frozen_random_state(cuda=True),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        try:
            for parameter, _ in flags:
                if parameter.is_floating_point() or parameter.is_complex():
                    parameter.requires_grad_(True)
            for module in model.modules():
                vars(module)["training"] = False
            with _watched(model, set(widths), calls, hooks):
                inputs.copy().call(model)
        except Exception as error:
            failure = error
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
    return calls, failure


@contextmanager
def _watched(model: nn.Module, norms: set[str], calls: _Calls, hooks: bool) -> Iterator[None]:
    """Note what norms and linear layers are called with, in this thread."""
    names = {id(module): name for name, module in model.named_modules()}
    original, thread = nn.Module.__call__, threading.get_ident()

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        name = names.get(id(module))
        if name is None or threading.get_ident() != thread:
            return original(module, *args, **kwargs)
        source = next(_tensors((args, kwargs)), None)
        if source is not None and _owns_weight(module):
            calls.consumers.append((module, source))
        run: Callable[..., Any] = module.forward
        calls.stack.append(name)
        try:
            result = original(module, *args, **kwargs) if hooks else run(*args, **kwargs)
        except Exception:
            calls.failed_at = calls.failed_at or name
            raise
        finally:
            calls.stack.pop()
        if name in norms and name not in calls.norms:
            calls.norms[name] = (source, result)
            calls.order[name] = len(calls.consumers)
        return result

    nn.Module.__call__ = call  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__call__ = original  # type: ignore[method-assign]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)


def _owns_weight(module: nn.Module) -> bool:
    """Whether a module is a linear layer or convolution, torch's or anybody's with that layout."""
    if is_weight_module(module):
        return True
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag, nn.Bilinear)):
        return False
    weight = module._parameters.get("weight")
    return weight is not None and weight.dim() >= 2 and next(module.children(), None) is None


def _executed_at(node: Any) -> int:
    """Order of execution; parameters, which autograd numbers last, come first."""
    return -1 if hasattr(node, "variable") else int(node._sequence_nr())


class _Search:
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
                if not (_owns_weight(module) and key == "weight"):
                    continue
                groups = getattr(module, "groups", 1)
                part = AnchorPart(
                    names[id(parameter)],
                    0,
                    groups=groups if isinstance(groups, int) else 1,
                    transposed=bool(getattr(module, "transposed", False)),
                )
                self._parts[id(parameter)] = part
        self._shapes = {id(p): tuple(p.shape) for p in model.parameters()}

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
            parts = self._nearest(node, width, blocked)
            if parts is not None:
                return Anchor(parts, "autograd")
        return None

    def _nearest(self, start: Any, width: int, blocked: bool) -> tuple[AnchorPart, ...] | None:
        """Parts for a width, or for any width (the first weight met) if ``width`` is 0.

        Operations are visited in reverse order of execution, which is what autograd numbers them
        by, so the weight used last is found first.
        """
        seen, pushed = {start}, 0
        heap = [(-_executed_at(start), 0, start)]
        while heap:
            _, _, node = heapq.heappop(heap)
            if blocked and node.name().startswith(_PRODUCTS):
                part = self._multiplied(node, width)
                if part is not None:
                    return (part,)
                continue
            if node.name().startswith("CatBackward"):
                joined = self._joined(node, width)
                if joined is not None:
                    return joined
            part = None if blocked else self._multiplied(node, width)
            if part is not None:
                return (part,)
            for ahead, _ in node.next_functions:
                if ahead is not None and ahead not in seen:
                    seen.add(ahead)
                    pushed += 1
                    heapq.heappush(heap, (-_executed_at(ahead), pushed, ahead))
        return None

    def _parameter(self, node: Any, width: int) -> AnchorPart | None:
        variable = getattr(node, "variable", None)
        part = self._parts.get(id(variable))
        if part is None:
            return None
        made = anchor_width(self._shapes[id(variable)], part)
        if width not in (0, made):
            return None
        return AnchorPart(part.weight, made, groups=part.groups, transposed=part.transposed)

    def _multiplied(self, node: Any, width: int) -> AnchorPart | None:
        """The weight that a product multiplies by, behind layout changes of the weight."""
        level = [ahead for ahead, _ in node.next_functions if ahead is not None]
        for _ in range(8):
            following: list[Any] = []
            for item in level:
                part = self._parameter(item, width)
                if part is not None:
                    return part
                if item.name().startswith(_LAYOUT):
                    following += [ahead for ahead, _ in item.next_functions if ahead is not None]
            level = following
        return None

    def _joined(self, node: Any, width: int) -> tuple[AnchorPart, ...] | None:
        parts: list[AnchorPart] = []
        for ahead, _ in node.next_functions:
            found = self._nearest(ahead, 0, True) if ahead is not None else None
            if found is None:
                return None
            parts += found
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
            read = AnchorPart(part.weight, 0, "input", 0, 1, part.groups, part.transposed)
            made = anchor_width(shape, read)
            if made in widths and self._reaches(source.grad_fn, target):
                found = AnchorPart(part.weight, made, "input", 0, 1, part.groups, part.transposed)
                return Anchor((found,), "autograd")
        return None

    def _reaches(self, start: Any, target: Any) -> bool:
        level, seen = [start], {start}
        while level:
            following: list[Any] = []
            for node in level:
                if node is target:
                    return True
                if node.name().startswith(_PRODUCTS):
                    continue
                for ahead, _ in node.next_functions:
                    if ahead is not None and ahead not in seen:
                        seen.add(ahead)
                        following.append(ahead)
            level = following
        return False
