"""Read a mark out of the released weights without a key, and turn it over.

If all rows of a layer answered to the same vectors, these would show: every row would keep a
distance from zero along them, so the second moment of the rows would have them as leading
directions, and projections on them would have two humps. The attack takes the leading directions as
a start, goes to the direction along which the rows keep the most distance, and changes the sign of
that component in half of the rows. It needs no data and no key.

Against vectors of each row's own nothing is to be found: the direction that fits best is one that
the training has put there, and turning it over costs the thief's network its function.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from passportize.attacks.attack import Attacked, Means, register_attack
from passportize.errors import InvalidArgument
from passportize.signature.vectors import WINDOW
from passportize.tracing.weight_layers import is_weight_module

__all__ = ["Direction", "find_direction", "turn_directions_over", "turn_rows_over"]

_DISTANCE = 2.0
_FEWEST_ROWS = 64
_ROUNDS = 30


@dataclass(frozen=True)
class Direction:
    """A direction of -1 and +1 that the rows of a weight keep away from.

    Attributes:
        vector: ``[entries]``.
        offset: Its first entry in the rows.
        missing: Mean square of what the rows lack to two standard deviations, in units of the
            response: 0 where all of them answer to it, about 1.5 for any direction of random rows.
    """

    vector: Tensor
    offset: int
    missing: float


def find_direction(rows: Tensor, directions: int = 2) -> Direction:
    """The signs along which rows keep most distance from zero.

    Args:
        rows: ``[n, D]``, a weight flattened behind its first dimension.
        directions: How many leading directions to start from, and their sums and differences.

    Raises:
        InvalidArgument: There are too few rows to see anything.
    """
    if rows.dim() != 2 or len(rows) < _FEWEST_ROWS:
        raise InvalidArgument(
            f"find_direction: {list(rows.shape)} are no {_FEWEST_ROWS} rows or more; give a larger "
            "weight"
        )
    rows = rows.detach().double().cpu()
    width = min(WINDOW, rows.shape[1])
    offsets = range(0, rows.shape[1] - width + 1, max(1, width // 4))
    found = (_in_window(rows[:, start : start + width], start, directions) for start in offsets)
    return min(found, key=lambda direction: direction.missing)


def _in_window(rows: Tensor, offset: int, directions: int) -> Direction:
    unit = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(1e-300)
    _, leading = torch.linalg.eigh(unit.t() @ unit)
    first = [leading[:, -1 - place] for place in range(min(directions, leading.shape[1]))]
    starts = list(first)
    if len(first) > 1:
        starts += [first[0] + first[1], first[0] - first[1]]
    refined = [_refine(unit, start) for start in starts]
    vector, missing = min(refined, key=lambda pair: pair[1])
    return Direction(vector, offset, missing)


def _refine(unit: Tensor, start: Tensor) -> tuple[Tensor, float]:
    """Follow the signs of the projections, round, then change single entries while that helps."""
    vector = start
    for _ in range(_ROUNDS):
        vector = torch.sign(unit @ vector) @ unit
    signs = torch.where(vector < 0, -1.0, 1.0).to(unit.dtype)
    answers = unit @ signs
    missing = _missing(answers)
    for _ in range(len(signs)):
        changed = _missing(answers[:, None] - 2 * unit * signs)
        best = int(changed.argmin())
        if changed[best] >= missing:
            break
        answers = answers - 2 * unit[:, best] * signs[best]
        signs[best] = -signs[best]
        missing = changed[best]
    return signs, float(missing)


def _missing(answers: Tensor) -> Tensor:
    return torch.relu(_DISTANCE - answers.abs()).square().mean(0)


def turn_rows_over(
    rows: Tensor, direction: Direction, generator: torch.Generator | None = None
) -> Tensor:
    """A copy of rows in which the component along a direction has the other sign in half of them.

    Args:
        rows: ``[n, D]``.
        direction: From :func:`find_direction`.
        generator: Chooses the half.
    """
    stop = direction.offset + len(direction.vector)
    part = rows[:, direction.offset : stop].double()
    along = part @ direction.vector.to(part.device) / len(direction.vector)
    chosen = torch.rand(len(rows), generator=generator) < 0.5
    moved = part - 2 * (along * chosen.to(part.device))[:, None] * direction.vector.to(part.device)
    turned = rows.clone()
    turned[:, direction.offset : stop] = moved.to(rows.dtype)
    return turned


@torch.no_grad()
def turn_directions_over(
    model: nn.Module, generator: torch.Generator | None = None, times: int = 2
) -> dict[str, list[Direction]]:
    """Turn the leading directions over in every convolution and linear layer of a plain model.

    Args:
        model: Somebody else's released model; it is changed in place.
        generator: Chooses the rows.
        times: How many directions of each weight, one after the other: the normalised response has
            two that hold a bit.

    Returns:
        What was found, by name of the weight.
    """
    found: dict[str, list[Direction]] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not is_weight_module(module) or weight is None or len(weight) < _FEWEST_ROWS:
            continue
        for _ in range(times):
            rows = weight.flatten(1)
            direction = find_direction(rows)
            weight.copy_(turn_rows_over(rows, direction, generator).view_as(weight))
            found.setdefault(f"{name}.weight", []).append(direction)
    return found


@register_attack(
    "spectral",
    kind="removal",
    source="this library",
    expected="turns over what rows of a layer have in common: 'paper'; 'keyed' has nothing such",
)
def _attack(model: nn.Module, means: Means, *, times: int = 2) -> Attacked:
    """The leading directions of every layer's rows turned over: no data, no key."""
    found = turn_directions_over(model, torch.Generator().manual_seed(means.seed), times)
    if not found:
        raise InvalidArgument(
            f"spectral: {type(model).__name__} has no weight with {_FEWEST_ROWS} rows or more"
        )
    return Attacked(figures={"weights": len(found)})
