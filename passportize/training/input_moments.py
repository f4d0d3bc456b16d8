"""Moments of the inputs of many weights, in the order in which a model uses them.

As many weights at a time as memory allows are watched in one pass over the batches. What is done to
the weights in between, later passes see.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from passportize.errors import InvalidArgument
from passportize.tracing.layer_inputs import InputMoments, Moments, ReachedLast, observed
from passportize.utils.frozen import eager_mode, in_eval_mode, trial
from passportize.utils.progress import Progress
from passportize.utils.trees import call_model, moved_inputs, place_of

__all__ = ["Watched", "first_batch", "inputs_of", "moments_in_order"]

_MEMORY = 1 << 29
"""Bytes that the moments of the weights of one pass may take.

Who changes a weight takes a few times its own beside it."""


@dataclass(frozen=True)
class Watched:
    """A weight whose inputs are looked at.

    Attributes:
        owner: The module that multiplies with it.
        values: The weight.
        block: The run of entries of a row to look at.
        groups: Groups of rows that have inputs of their own.
    """

    owner: nn.Module
    values: Tensor
    block: slice
    groups: int = 1

    @property
    def size(self) -> int:
        """Bytes of its moments."""
        entries: int = self.block.stop - self.block.start
        return 8 * self.groups * entries**2


def inputs_of(batch: Any) -> Any:
    """The inputs of a batch, which may come with labels."""
    if isinstance(batch, (tuple, list)) and not hasattr(batch, "_fields") and len(batch) == 2:
        return batch[0]
    return batch


def first_batch(batches: Iterable[Any], what: str) -> Any:
    """The first of some batches, as it comes.

    Args:
        batches: Not what can be read only once.
        what: How the argument with the batches is called, for messages.

    Raises:
        InvalidArgument: There is none, or they are no batches.
    """
    if not isinstance(batches, Iterable) or isinstance(batches, (Tensor, str)):
        raise InvalidArgument(
            f"{what} must be batches of inputs, [images] for one batch, not a "
            f"{type(batches).__name__}"
        )
    first = next(iter(batches), None)
    if first is None:
        raise InvalidArgument(f"{what} gives no batch of inputs")
    return first


def moments_in_order(
    model: nn.Module,
    weights: Mapping[str, Watched],
    batches: Iterable[Any],
    what: str,
    progress: Progress | None = None,
) -> Iterator[tuple[str, Moments]]:
    """The moments of every weight whose products can be seen, in the order of its last use.

    The model runs in evaluation mode and is left as it was.

    Args:
        model: The model.
        weights: By name.
        batches: Inputs, as :func:`passportize.embed_signature` takes them for ``calibration``.
        what: How the argument with the batches is called, for messages.
        progress: Called with batches done and their number.

    Raises:
        InvalidArgument: There is no batch, or they are no batches.
    """
    if isinstance(batches, Iterator):
        batches = list(batches)
    first = first_batch(batches, what)
    place = place_of(model)
    watched = (
        {name: each.owner for name, each in weights.items()},
        {name: each.values for name, each in weights.items()},
        {name: each.block for name, each in weights.items()},
    )

    @contextlib.contextmanager
    def watching() -> Iterator[InputMoments]:
        with trial(model), in_eval_mode(model), eager_mode(), observed(*watched) as mode:
            yield mode

    def run(mode: InputMoments, batch: Any) -> None:
        mode.uses.clear()
        with contextlib.suppress(ReachedLast):
            call_model(model, moved_inputs(inputs_of(batch), place))

    with watching() as mode:
        mode.wanted = frozenset()
        run(mode, first)
    uses = dict(mode.uses)
    groups = list(_groups(list(uses), weights))
    steps = _Steps(len(groups), progress)
    for group in groups:
        with watching() as mode:
            mode.wanted, mode.stop_after = frozenset(group), (group[-1], uses[group[-1]])
            for batch in batches:
                run(mode, batch)
                steps.batch()
        steps.group()
        for name in group:
            yield name, mode.moments.pop(name)


class _Steps:
    """Progress in batches, whose number is known after the first pass."""

    def __init__(self, groups: int, progress: Progress | None) -> None:
        self._groups, self._progress = groups, progress
        self._done, self._batches = 0, 0

    def batch(self) -> None:
        self._done += 1
        if self._progress is not None and self._batches:
            self._progress(self._done, self._batches * self._groups)

    def group(self) -> None:
        if not self._batches:
            self._batches = self._done
            if self._progress is not None:
                self._progress(self._done, self._batches * self._groups)


def _groups(order: Sequence[str], weights: Mapping[str, Watched]) -> Iterator[list[str]]:
    """Weights in the order in which they are used, as many at a time as memory allows."""
    group: list[str] = []
    taken = 0
    for name in order:
        size = weights[name].size
        if group and taken + size > _MEMORY:
            yield group
            group, taken = [], 0
        group.append(name)
        taken += size
    if group:
        yield group
