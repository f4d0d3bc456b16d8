"""Random numbers drawn alike for the same sample, whatever the size of the batch that it is in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["AlikeDraws", "CollectiveCalled"]

_COLLECTIVES = ("c10d", "_c10d_functional", "_c10d_functional_autograd")
_UNIFORM = ("rand", "rand_like", "uniform_")
_NORMAL = ("randn", "randn_like", "normal_", "normal", "normal_functional")
_DROPOUT = frozenset({"dropout_p", "dropout"})


class CollectiveCalled(Exception):
    """Operations within would have talked to other processes."""


class AlikeDraws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within, what is drawn for the first rows of a tensor does not depend on how many follow.

    A batch of ``rows`` samples with the first ``repeated`` of them appended gets for the appended
    ones what the same samples got before. Sequences come from torch's seed on the CPU, so that
    setting it repeats them; generators of the model's own are not advanced. Draws that are no
    numbers by row (a permutation, say) are those of the seed. Attention and recurrent kernels with
    a dropout of their own run without. No process talks to another one.

    Args:
        rows: Samples of the batch.
        repeated: How many of them come once more behind it.

    Attributes:
        drew: Whether any operation so far would have drawn numbers.
    """

    def __init__(self, rows: int, repeated: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows, self.repeated = rows, repeated
        self.drew = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch would import its compiler for this mode, and ask it at every operation."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run one operation, with draws of our own if it draws."""
        if func.namespace in _COLLECTIVES:
            raise CollectiveCalled(str(func))
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **(kwargs or {}))
        given = dict(kwargs or {})
        if "generator" in given:
            given["generator"] = None
        name = func._schema.name.rpartition("::")[2]
        arguments = func._schema.arguments
        bound = {argument.name: argument.default_value for argument in arguments}
        bound |= {arguments[index].name: value for index, value in enumerate(args)} | given
        dropped = [value for key, value in bound.items() if key in _DROPOUT]
        if dropped and not any(dropped):
            return func(*args, **given)
        self.drew = True
        seed = int(torch.empty((), dtype=torch.int64, device="cpu").random_())
        if name == "native_dropout":
            return self._dropout(bound["input"], bound["p"], bound["train"], seed)
        chance: Any = bound.get("p", bound.get("self"))  # of each number, or the same for all
        if isinstance(chance, Tensor):
            chance = chance.clone()  # drawn in place, perhaps
        without = [
            0.0 if arguments[index].name in _DROPOUT else value for index, value in enumerate(args)
        ]
        given |= dict.fromkeys(given.keys() & _DROPOUT, 0.0)
        with _seeded(seed):
            out = func(*without, **given)
        if name in _UNIFORM:
            low, high = bound.get("from") or 0.0, bound.get("to", 1.0)
            out.copy_(self._uniform(out, seed) * (high - low) + low)
        elif name in ("bernoulli", "bernoulli_"):
            out.copy_(self._uniform(out, seed) < chance)
        elif name in _NORMAL and isinstance(out, Tensor):
            normal = math.sqrt(2) * torch.erfinv(self._uniform(out, seed) * 2 - 1)
            out.copy_(normal * bound.get("std", 1.0) + bound.get("mean", 0.0))
        return out

    def _dropout(self, x: Tensor, p: float, train: bool | None, seed: int) -> tuple[Tensor, Tensor]:
        if train is False or p == 0:
            return x.clone(), torch.ones_like(x, dtype=torch.bool)
        mask = self._uniform(x, seed) >= p
        return x * mask * (1 / (1 - p) if p < 1 else 0.0), mask

    def _uniform(self, like: Tensor, seed: int) -> Tensor:
        """Numbers in (0, 1) in the shape of a tensor, one row after another."""
        generator = torch.Generator(device="cpu").manual_seed(seed)
        shape, total = list(like.shape), self.rows + self.repeated
        again = 0
        if self.repeated and shape and shape[0] and shape[0] % total == 0:
            again = shape[0] // total * self.repeated
            shape[0] -= again
        drawn = torch.rand(shape, generator=generator, device="cpu", dtype=torch.float64)
        if again:
            drawn = torch.cat([drawn, drawn[:again]])
        drawn = drawn.clamp(1e-7, 1 - 1e-7)
        wide = like.dtype == torch.float64 or not like.is_floating_point()
        exact = wide and like.device.type != "mps"
        return drawn.to(like.device, torch.float64 if exact else torch.float32)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's generators; that of the CPU goes on as before.

    Not with ``torch.manual_seed``, which notes where it was called from.
    """
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        for generator in torch.cuda.default_generators:
            generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)
