"""Bits put into the rows of a trained layer, where a thief cannot take them away for nothing.

A row that carries a bit has to answer to its vectors ``V = [s t]``; what its layer computes moves
by the products of the row's change and the layer's inputs. Where these inputs are large a change
moves the output. Where they are small it does not, and neither does a thief's who takes it away. So
a change lies in between (:mod:`passportize.signature.metric`), and it does not lean on what the row
happens to answer in directions that inputs hardly use: what is left of the row without them has to
answer with its bit as well (:mod:`passportize.signature.conditions`). Of all changes that meet
``A' (w + dw) = d`` the one that costs least is

    dw = P A (A' P A)^-1 (d - A' w)

(least squares under linear constraints; with ``P = S^-1``, the price of the output alone, the same
step prunes weights in "Optimal Brain Surgeon", NeurIPS 1992). How high the level is, what may
change of the output decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from passportize.signature.conditions import Conditions
from passportize.signature.metric import Metric
from passportize.signature.response import reach_of
from passportize.signature.vectors import SignVectors

__all__ = ["FIRST", "Depth", "cheapest_rows", "rows_at_share"]

_BLOCK = 256
"""Rows that are solved for at a time."""

_FLOOR = 1e-3
"""Part of every direction in ``P``: inputs may be zero in all that a row is read in."""

_WIDER = 4.0
"""Where a row does not settle, the level falls by this, and then that part grows by it."""

_TRIES = 20

_LEVELS = 0.1, 100.0
"""Lowest and highest level. Lower ones hide a mark where no input is, and there it is seen."""

FIRST, _SLOPE = 0.3, 1.3
"""Where a search begins, and with which power of the level about it is paid."""

_AIM, _CLOSE = 0.85, 0.7
"""Parts of what is allowed: aimed at, and enough to stop at."""

_SEARCHES = 8


class Depth(NamedTuple):
    """How deep in what inputs use a change lies.

    Attributes:
        level: The size of the inputs there, in units of the mean.
        used: Whether what inputs use of a row has to answer with its bits as well.
    """

    level: float = FIRST
    used: bool = True


def rows_at_share(
    rows: Tensor,
    vectors: SignVectors,
    bits: Tensor,
    margin: float,
    metric: Metric,
    share: float,
    centred: bool = False,
    first: float = FIRST,
) -> tuple[Tensor | None, Depth]:
    """Rows that answer with their bits, as deep in what inputs use as a share of the output allows.

    Args:
        rows: As for :func:`cheapest_rows`, which see.
        vectors: Of these rows.
        bits: -1 and +1, float64 ``[rows]``.
        margin: Of the responses, in standard deviations.
        metric: In which directions rows change.
        share: What the change may make of the second moment of what the rows compute, all of them
            together; more is spent only where the smallest depth needs more.
        centred: Whether the mean of a row is taken from it before it is read.
        first: The level that is tried first.

    Returns:
        What to add to the rows, or None where all keep the margin; and the depth.
    """
    allowed = share * metric.output(rows)

    def change(depth: Depth) -> Tensor | None:
        return cheapest_rows(rows, vectors, bits, margin, metric, depth, centred)

    added, depth = None, Depth()
    for used in (True, False):
        added, depth, spent = _deepest(change, Depth(first, used), metric, allowed)
        if added is None or spent <= allowed:
            break
    return added, depth


def _deepest(
    change: Callable[[Depth], Tensor | None], first: Depth, metric: Metric, allowed: float
) -> tuple[Tensor | None, Depth, float]:
    """The change at the highest level at which outputs move by what is allowed, and by how much."""
    lowest, highest = (math.log(level) for level in _LEVELS)
    low, high = lowest, highest
    at = min(max(math.log(first.level), low), high)
    best: tuple[Tensor | None, Depth, float] | None = None
    for _ in range(_SEARCHES):
        depth = first._replace(level=math.exp(at))
        added = change(depth)
        if added is None:
            return None, depth, 0.0
        spent = metric.output(added)
        if spent > allowed:
            high = at
        if spent <= allowed or at == lowest:
            best, low = (added, depth, spent), at
        if (at == lowest and spent > allowed) or _CLOSE * allowed <= spent <= allowed:
            break
        # A little less than allowed is aimed at.
        at += math.log(_AIM * max(allowed, 1e-300) / max(spent, 1e-300)) / _SLOPE
        if not low < at < high:
            at = lowest if best is None and at <= low else (low + high) / 2
    if best is None:
        depth = first._replace(level=_LEVELS[0])
        added = change(depth)
        best = added, depth, 0.0 if added is None else metric.output(added)
    return best


def cheapest_rows(
    rows: Tensor,
    vectors: SignVectors,
    bits: Tensor,
    margin: float,
    metric: Metric,
    depth: Depth,
    centred: bool = False,
) -> Tensor | None:
    """Rows that answer with their bits, by the change that costs least at a depth.

    Args:
        rows: Rows that carry bits, as they are read, float64 ``[rows, entries]``: whole rows, or a
            run of their entries that has the window in it, with its offset counted from there.
        vectors: Of these rows.
        bits: -1 and +1, float64 ``[rows]``.
        margin: Of the responses, in standard deviations.
        metric: In which directions rows change.
        depth: How deep; rows that cannot keep the margin there lie less deep.
        centred: Whether the mean of a row is taken from it before it is read, so that a change has
            to be read in the same way.

    Returns:
        What to add to the rows, ``[rows, entries]``, or None where all meet all conditions. Rows
        whose window is zero stay.
    """
    window = vectors.window
    reach = reach_of(margin, vectors.entries)
    signs = vectors.signs(rows.dtype)[:2]
    added = torch.zeros_like(rows)
    turned = False
    for start in range(0, len(rows), _BLOCK):
        todo = torch.arange(start, min(start + _BLOCK, len(rows)), device="cpu")
        planes = torch.zeros(2, len(todo), rows.shape[1], dtype=rows.dtype, device="cpu")
        planes[:, :, window] = signs[:, todo]
        if centred:
            planes -= planes.mean(2, keepdim=True)
        (level, used), floor = depth, _FLOOR
        for _ in range(_TRIES):
            part = planes[:, todo - start]
            some = rows[todo], part, bits[todo], reach
            conditions = Conditions(*some, metric, level, window, centred, used)
            found, lacking, settled = conditions.solved(floor)
            turned = turned or bool(lacking.any())
            done = lacking & settled
            added[todo[done]] = found[done]
            todo = todo[lacking & ~settled]
            if not len(todo):
                break
            # Too few directions for the margin: at lower levels there are more, at last all; and
            # what a row answers as a whole comes first.
            if level > _LEVELS[0]:
                level = max(level / _WIDER, _LEVELS[0])
            else:
                used = False
                floor *= _WIDER
    return added if turned else None
