"""What layers multiply their weights with: moments of their inputs, caught in a forward pass.

Every product with a weight is one of a few operations below the modules, whatever class called it:
a plain layer, one that pads its input first, fused projections of an attention, a function call. So
nothing has to be known about the modules.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["InputMoments", "Moments", "ReachedLast", "observed"]

_MOST_WORK = 4e11
"""Multiplications for the second moment of one layer; of more inputs some are left out, evenly."""


class ReachedLast(Exception):
    """All that was to be seen in a forward pass was seen; the rest of it is not needed."""


@dataclass
class Moments:
    """Sums over the inputs of one layer.

    Attributes:
        second: Sums of products of entries, float64 ``[groups, entries, entries]``.
        first: Sums of entries, float64 ``[groups, entries]``.
        count: Number of inputs.
    """

    second: Tensor
    first: Tensor
    count: int = 0

    def add(self, inputs: Tensor) -> None:
        """Take inputs along.

        Args:
            inputs: ``[groups, inputs, entries]``.
        """
        exact = inputs.float() if inputs.dtype != torch.float64 else inputs
        self.second += torch.bmm(exact.transpose(1, 2), exact).cpu().double()
        self.first += exact.sum(1).cpu().double()
        self.count += exact.shape[1]

    def mean(self) -> Tensor:
        """``[groups, entries]``."""
        return self.first / max(1, self.count)

    def moment(self, centred: bool, group: int = 0) -> Tensor:
        """Second moment of one group, about the mean or about zero, ``[entries, entries]``."""
        second = self.second[group] / max(1, self.count)
        if centred:
            mean = self.first[group] / max(1, self.count)
            second = second - torch.outer(mean, mean)
        return second


class InputMoments(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects moments of the inputs of some weights while a model runs.

    Args:
        weights: The weights by name, as the modules hold them.
        blocks: For each the run of entries of a row to look at.
        owner: Name of the weight whose module is running, where its weight is computed anew in
            every pass (weight-standardised convolutions).
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        blocks: Mapping[str, slice],
        owner: Callable[[], str | None],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.moments: dict[str, Moments] = {}
        self.uses: dict[str, int] = {}
        self.blocks = blocks
        self._owner = owner
        self._names = {
            weight.untyped_storage().data_ptr(): name for name, weight in weights.items()
        }
        self._shapes = {name: weight.shape for name, weight in weights.items()}
        self.wanted: frozenset[str] = frozenset(weights)
        self.stop_after: tuple[str, int] = ("", 0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kind = _OPERATIONS.get(func)
        if kind is not None:
            for name, inputs in kind(self, args):
                self._take(name, inputs)
        return func(*args, **(kwargs or {}))

    def name_of(self, tensor: Any, computed: bool = False) -> str | None:
        """The weight that a tensor is.

        Args:
            tensor: What stands in the place of a weight in an operation.
            computed: Whether it may be computed from the weight of the module that is running.
        """
        if not isinstance(tensor, Tensor) or tensor.device.type == "meta":
            return None
        name = self._names.get(tensor.untyped_storage().data_ptr())
        if name is None and computed:
            name = self._owner()
            if name is not None and tensor.shape != self._shapes[name]:
                return None
        return name

    def _take(self, name: str, inputs: Callable[[slice, int], Tensor]) -> None:
        # In the order of the last use.
        self.uses[name] = self.uses.pop(name, 0) + 1
        if name not in self.wanted:
            return
        block = self.blocks[name]
        entries = block.stop - block.start
        taken = inputs(block, entries)
        known = self.moments.get(name)
        if known is None:
            groups = taken.shape[0]
            known = self.moments[name] = Moments(
                torch.zeros(groups, entries, entries, dtype=torch.float64, device="cpu"),
                torch.zeros(groups, entries, dtype=torch.float64, device="cpu"),
            )
        if taken.shape[0] == known.second.shape[0]:
            known.add(taken)
        if self.stop_after == (name, self.uses[name]):
            raise ReachedLast


def _chosen(count: int, entries: int, groups: int = 1) -> Tensor | None:
    """Which of the inputs of a batch are looked at; None for all.

    So many that their product is affordable, and no more than 64 for each entry: then the moment of
    a single batch is within a quarter of that of all its inputs in every direction (the edges of
    Marchenko and Pastur's law), that of several closer. They are spread by a step of about the
    golden ratio of their number that shares no factor with it; evenly spaced ones may all lie in
    one column of an image. docs/claim_format.md has the rule, so it must not change.
    """
    most = max(4096, min(64 * entries, int(2e10 / (entries**2 * groups))))
    if count <= most:
        return None
    step = next(n for n in itertools.count(618 * count // 1000) if math.gcd(n, count) == 1)
    return (torch.arange(most, device="cpu") * step % count).sort().values


def _thin(inputs: Tensor, entries: int) -> Tensor:
    """Those of the inputs ``[inputs, entries]`` that are looked at."""
    chosen = _chosen(len(inputs), entries)
    return inputs if chosen is None else inputs[chosen.to(inputs.device)]


_Found = Iterator[tuple[str, Callable[[slice, int], Tensor]]]


def _product(mode: InputMoments, inputs: Any, matrix: Any) -> _Found:
    name = mode.name_of(matrix)
    if name is not None and isinstance(inputs, Tensor) and inputs.dim() == 2:
        yield name, lambda block, entries: _thin(inputs, entries)[None, :, block]


def _mm(mode: InputMoments, args: Sequence[Any]) -> _Found:
    yield from _product(mode, args[0], args[1])
    if isinstance(args[1], Tensor):
        yield from _product(mode, args[1].t(), args[0])


def _addmm(mode: InputMoments, args: Sequence[Any]) -> _Found:
    yield from _mm(mode, args[1:])


def _convolution(mode: InputMoments, args: Sequence[Any]) -> _Found:
    inputs, weight, _, stride, padding, dilation, transposed, _, groups = args
    name = mode.name_of(weight, computed=True)
    if name is None or transposed:
        return

    def patches(block: slice, entries: int) -> Tensor:
        return _patches(inputs, weight.shape[2:], stride, padding, dilation, groups, block, entries)

    yield name, patches


def _patches(
    inputs: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    block: slice,
    entries: int,
) -> Tensor:
    """The pieces of a convolution's input that its kernels see, ``[groups, pieces, entries]``.

    Entries in the order of the weight's: input channel of the group, then the kernel.
    """
    sides = [side for size in reversed(padding) for side in (size, size)]
    seen = F.pad(inputs, sides) if any(sides) else inputs
    for axis, (size, step, apart) in enumerate(zip(kernel, stride, dilation, strict=True)):
        seen = seen.unfold(2 + axis, (size - 1) * apart + 1, step)
        if apart > 1:
            seen = seen[..., ::apart]
    # [samples, channels, positions..., kernel...] -> [samples, positions..., channels, kernel...]
    axes = len(kernel)
    order = [0, *range(2, 2 + axes), 1, *range(2 + axes, 2 + 2 * axes)]
    seen = seen.permute(order)
    grid = seen.shape[: 1 + axes]
    chosen = _chosen(math.prod(grid), entries, groups)
    if chosen is not None:
        # Before the pieces are laid out in memory, which takes as long as their product.
        seen = seen[torch.unravel_index(chosen.to(seen.device), grid)]
    pieces = seen.reshape(-1, groups, math.prod(seen.shape[-1 - axes :]) // groups)
    return pieces.transpose(0, 1)[:, :, block]


_OPERATIONS: dict[Any, Callable[[InputMoments, Sequence[Any]], _Found]] = {
    torch.ops.aten.mm.default: _mm,
    torch.ops.aten.addmm.default: _addmm,
    torch.ops.aten.convolution.default: _convolution,
}


class _NoFastPath(TorchFunctionMode):
    """Its presence keeps attention modules from the fused operation that shows no products."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return func(*args, **(kwargs or {}))


def _enter(running: list[str], name: str, *_: Any) -> None:
    running.append(name)


@contextmanager
def observed(
    owners: Mapping[str, nn.Module], weights: Mapping[str, Tensor], blocks: Mapping[str, slice]
) -> Iterator[InputMoments]:
    """Watch the products with some weights within a ``with`` block.

    Args:
        owners: Module that owns each weight, by the name of the weight.
        weights: The weights.
        blocks: For each the run of entries of a row to look at.
    """
    running: list[str] = []

    def leave(*_: Any) -> None:
        running.pop()

    handles = []
    for name, module in owners.items():
        enter = functools.partial(_enter, running, name)
        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave, always_call=True))
    mode = InputMoments(weights, blocks, lambda: running[-1] if running else None)
    try:
        with _NoFastPath(), mode:
            yield mode
    finally:
        for handle in handles:
            handle.remove()
