"""Which steps of a suspect's chain of linear steps stand for which of the released one.

Chains start and end where something else happens, so two models of one structure have the same of
them, in whatever number of steps. They are cut into stretches of which both have the same sizes,
as many as can be: a stretch of one released layer is read from the product of the suspect's steps;
of one with several only the product is known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from passportize.tracing.linear_chains import is_frozen_norm

__all__ = ["Stretch", "Step", "cut_in_stretches", "step_of"]

_MERGED = 1.0
_IN_NORM = 5.0
_ONLY_PRODUCT = 50.0
_MOST_STEPS = 256
_OTHER_WIDTH = 0.5  # for each octave


@dataclass(frozen=True)
class Step:
    """One step of a chain.

    Attributes:
        name: Name of its module.
        norm: Whether it is a norm.
        inputs: Number of channels that it reads.
        outputs: Number of channels that it makes.
        kernel: Size of its kernel, empty where it is one entry.
        groups: Groups of channels.
        biased: Whether it can add something.
    """

    name: str
    norm: bool
    inputs: int
    outputs: int
    kernel: tuple[int, ...]
    groups: int
    biased: bool

    @property
    def separate(self) -> bool:
        """Whether every channel is made from one alone, and is one."""
        return self.groups == self.inputs == self.outputs

    @property
    def diagonal(self) -> bool:
        """Whether it multiplies each channel with a number."""
        return self.separate and not self.kernel


@dataclass(frozen=True)
class Stretch:
    """Steps that compute the same.

    Attributes:
        suspect: The suspect's.
        released: The released model's.
        beside: Whether the steps of the one that has several read the same and lie side by side
            (queries, keys and values), so that their outputs together are those of the other.
    """

    suspect: tuple[Step, ...]
    released: tuple[Step, ...]
    beside: bool = False

    @property
    def same(self) -> bool:
        """Whether it is one step of one kind in both."""
        if self.beside or len(self.suspect) != 1 or len(self.released) != 1:
            return False
        mine, other = self.suspect[0], self.released[0]
        if mine.norm != other.norm or mine.separate != other.separate:
            return False
        return mine.separate or mine.groups == other.groups

    @property
    def layers(self) -> tuple[Step, ...]:
        """The released layers in it."""
        return tuple(step for step in self.released if not step.norm)


def step_of(name: str, module: nn.Module) -> Step:
    """A module as a step of a chain; only its sizes are looked at."""
    own: Any = module
    if is_frozen_norm(module):
        channels = len(own.running_mean)
        return Step(name, True, channels, channels, (), channels, True)
    outputs, inputs, *kernel = own.weight.shape
    groups = int(getattr(own, "groups", 1))
    sizes = tuple(kernel) if math.prod(kernel) > 1 else ()
    return Step(name, False, inputs * groups, outputs, sizes, groups, own.bias is not None)


def cut_in_stretches(
    suspect: Sequence[Step], released: Sequence[Step], any_width: bool = False
) -> tuple[float, list[Stretch]] | None:
    """Cut two chains into stretches.

    Args:
        suspect: Steps of the suspect's chain.
        released: Of the released one.
        any_width: Whether channels can have been added or taken away.

    Returns:
        What is lost by it, 0 where the chains are the same, and the stretches; None if there are
        none, or the suspect's chain has more steps than anybody needs.
    """
    if len(suspect) > _MOST_STEPS:
        return None
    best: dict[tuple[int, int], tuple[float, list[Stretch]]] = {(0, 0): (0.0, [])}
    for i in range(1, len(suspect) + 1):
        for j in range(1, len(released) + 1):
            for k in range(i):
                for m in range(j):
                    if (k, m) not in best:
                        continue
                    stretch = Stretch(tuple(suspect[k:i]), tuple(released[m:j]))
                    cost = _cost(stretch, any_width, first=m == 0)
                    before, stretches = best[k, m]
                    if cost is None or before + cost >= best.get((i, j), (math.inf, []))[0]:
                        continue
                    best[i, j] = before + cost, [*stretches, stretch]
    return best.get((len(suspect), len(released)))


def _cost(stretch: Stretch, any_width: bool, first: bool) -> float | None:
    """What is lost if a stretch is read as one; None if it is none.

    A norm that is a layer in the suspect has no statistics there, which would say how large the
    channels before it are: it is read together with the layer that makes them.
    """
    mine, other = stretch.suspect, stretch.released
    kernels = [[step.kernel for step in steps if step.kernel] for steps in (mine, other)]
    if kernels[0] != kernels[1] or len(kernels[0]) > 1:
        return None
    widths = (mine[0].inputs, other[0].inputs), (mine[-1].outputs, other[-1].outputs)
    cost = sum(_OTHER_WIDTH * abs(math.log2(own / wanted)) for own, wanted in widths)
    if cost and not any_width:
        return None
    diagonal = all(step.diagonal for step in mine)
    if stretch.same:
        return cost
    cost += _MERGED * (len(mine) - 1)
    if all(step.norm for step in other):
        return cost + _MERGED if diagonal and len(other) == 1 and first else None
    if len(stretch.layers) == 1:
        layer = stretch.layers[0]
        # A layer that mixes channels was not made of steps that do not.
        if diagonal != layer.diagonal:
            return None
        if len(other) == 1:
            # What it adds would be lost.
            lost = any(step.biased for step in mine) and not layer.biased
            return cost + (_IN_NORM if lost else 0.0)
        if other[0].norm or len(other) > 2:
            return None
        # What was the norm is in it rather than in what follows.
        return cost + _IN_NORM - (_MERGED / 2 if mine[-1].diagonal else 0.0)
    return cost + _ONLY_PRODUCT * len(stretch.layers)
