"""Which samples a rehearsal tries, and which tensors hold them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from passportize.layers.rehearsed_pass import Arguments
from passportize.utils.trees import Path, leaves_in, map_named

__all__ = ["hypotheses", "samples", "sizes"]

_ROWS = 4
"""Samples that are tried, where there are so many."""
_REPEATED = 2
"""Samples that are appended to them."""
_GUESSES = 4
"""Tensors of which each by itself is guessed to hold no samples."""


def sizes(rows: int) -> Iterator[tuple[int, int]]:
    """How many samples to try, and how many to append: a few, or else all that were given."""
    if rows > _ROWS:
        yield _ROWS, _REPEATED
    count = max(rows, 2)
    yield count, min(count, _REPEATED) if rows <= _ROWS else max(_REPEATED, rows // 4)


def hypotheses(carriers: list[Path]) -> Iterator[frozenset[Path]]:
    """Which tensors of the length of the batch may hold no samples: none of them, most likely."""
    yield frozenset()
    others = carriers[1 : 1 + _GUESSES]
    for path in others:
        yield frozenset({path})
    if len(others) > 1:
        yield frozenset(carriers[1:])


def samples(arguments: Arguments, carriers: frozenset[Path], count: int) -> Arguments | None:
    """Some samples of a batch, not all alike; None where that cannot be had.

    They are spread over the batch: neighbours have much in common where it is packed or sorted.

    Args:
        arguments: The batch.
        carriers: Where the tensors lie that hold samples.
        count: How many to take; more than there are repeats some.
    """

    def some(path: Path, tensor: Tensor) -> Tensor:
        if path not in carriers:
            return tensor
        chosen = torch.linspace(0, len(tensor) - 1, count).round().long().to(tensor.device)
        return tensor.detach()[chosen].requires_grad_(tensor.requires_grad)

    batch = map_named(some, arguments)
    if _all_alike(batch, carriers):
        batch = map_named(lambda path, x: _unlike(x) if path in carriers else x, batch)
    return None if _all_alike(batch, carriers) else batch


def _unlike(few: Tensor) -> Tensor:
    """Samples that differ: with noise, or turned round within each where they are whole numbers."""
    if few.is_floating_point():
        generator = torch.Generator(device="cpu").manual_seed(2)
        noise = torch.randn(few.shape, generator=generator, device="cpu")
        size = max(1.0, float(few.abs().max())) if few.numel() else 1.0
        noisy = few.detach() + noise.to(few.device, few.dtype) * size
        return noisy.requires_grad_(few.requires_grad)
    if few.dim() < 2:
        return few
    return torch.stack([row.roll(index, -1) for index, row in enumerate(few)])


def _all_alike(batch: Arguments, carriers: frozenset[Path]) -> bool:
    return all(
        bool((leaf == leaf[:1]).all()) for path, leaf in leaves_in(batch) if path in carriers
    )
