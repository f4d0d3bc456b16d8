"""Weights changed with a view to their inputs; above all, fitted anew to what they compute.

A row ``w`` that is fitted to its own outputs ``w . x`` on some inputs, with a penalty ``l`` on its
length, is

    S (S + l)^-1 w

with ``S`` the second moment of the inputs (ridge regression). Its part in directions that these
inputs do not use is gone, whatever anybody put there; what the layer computes of them stays. The
larger the penalty, the less is left of directions that they hardly use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from passportize.errors import InvalidArgument
from passportize.thresholds import FITTED_PENALTY, FITTED_SHARE, Penalty
from passportize.tracing.weight_layers import is_weight_module
from passportize.training.input_moments import Watched, moments_in_order
from passportize.utils.progress import Progress

__all__ = ["change_by_inputs", "refit_weights", "rows_with_moments"]

_WIDEST = 4608
"""Entries of the longest rows that are looked at: 3 x 3 kernels over 512 channels."""

_BLOCK = 256
"""Rows that are fitted at a time."""

_QUARTILE = 0.75

_HALVINGS, _REACH = 40, 60.0
"""Steps in which a penalty is found, and its logarithm at most, in units of the largest size."""

_SMALLEST = math.exp(-_REACH)


def rows_with_moments(
    model: nn.Module,
    inputs: Iterable[Any],
    shortest_row: int,
    progress: Progress | None = None,
    *,
    skip_broken: bool = False,
) -> Iterator[tuple[str, Tensor, list[Tensor]]]:
    """The rows of every conv and linear weight and the second moment of what they get.

    Left out are weights whose products are not seen, those of transposed convolutions, and those
    with rows of more than 4,608 entries.

    Args:
        model: A plain model.
        inputs: Batches, as :func:`passportize.embed_signature` takes them for ``calibration``.
        shortest_row: Weights with shorter rows are left out.
        progress: Called with batches done and their number.
        skip_broken: Leave out weights of layers that get what is not finite.

    Yields:
        The name of the weight; its rows by group, float64 ``[groups, rows, entries]``, a copy; and
        for each group the moment ``[entries, entries]``.

    Raises:
        InvalidArgument: There is no batch, or what a layer gets is not finite.
    """
    weights = _watched(model, shortest_row)
    for name, moments in moments_in_order(model, weights, inputs, "inputs", progress):
        if not bool(torch.isfinite(moments.second).all()):
            if skip_broken:
                continue
            raise InvalidArgument(
                f"the inputs of {name} are not finite in evaluation mode, so what they use cannot "
                "be told; look at the batches, and at the model's outputs on them"
            )
        groups = len(moments.second)
        rows = weights[name].values.detach().to("cpu", torch.float64, copy=True)
        rows = rows.reshape(groups, -1, moments.first.shape[1])
        yield name, rows, [moments.moment(False, group) for group in range(groups)]


@torch.no_grad()
def change_by_inputs(
    model: nn.Module,
    inputs: Iterable[Any],
    change: Callable[[Tensor, Tensor], Tensor],
    shortest_row: int,
    progress: Progress | None = None,
    *,
    skip_broken: bool = False,
) -> list[str]:
    """Change the rows of every conv and linear weight by the moment of their inputs, in place.

    All of them by the inputs that they have before any is changed.

    Args:
        model: A plain model.
        inputs: As for :func:`rows_with_moments`.
        change: Given the rows of a group and the moment of their inputs, what to put in their
            place.
        shortest_row: Weights with shorter rows stay as they are.
        progress: Called with batches done and their number.
        skip_broken: As for :func:`rows_with_moments`; such weights stay as they are.

    Returns:
        Names of the weights that were changed.

    Raises:
        InvalidArgument: As for :func:`rows_with_moments`.
    """
    changed = {
        name: torch.stack([change(*pair) for pair in zip(rows, moments, strict=True)])
        for name, rows, moments in rows_with_moments(
            model, inputs, shortest_row, progress, skip_broken=skip_broken
        )
    }
    for name, rows in changed.items():
        weight = model.get_parameter(name)
        weight.copy_(rows.view(weight.shape))
    return list(changed)


def refit_weights(
    model: nn.Module,
    inputs: Iterable[Any],
    share: float = FITTED_SHARE,
    penalty: Penalty = "rows",
    shortest_row: int = 1,
    progress: Progress | None = None,
) -> list[str]:
    """Fit every conv and linear weight anew to its own outputs on some inputs, in place.

    Args:
        model: A plain model.
        inputs: As for :func:`rows_with_moments`.
        share: What fitting may make of the second moment of what each row computes; the penalty is
            the largest with which it does not make more.
        penalty: ``"rows"``: each row has one of its own, so that none that somebody has made huge
            speaks for the others. ``"weights"``: all rows of a weight have the upper quartile of
            these, which takes out noise that makes much of what a single row computes, and is the
            thief's to choose who puts in many rows. ``"inputs"``: 10 times the mean size of the
            inputs, whatever the rows are, so that only what rows do with the strongest inputs is
            left; noise there costs most. ``share`` says nothing then.
        shortest_row: Weights with shorter rows stay as they are, and so do those of layers that get
            what is not finite: a suspect can hold anything.
        progress: Called with batches done and their number.

    Returns:
        Names of the weights that were fitted.

    Raises:
        InvalidArgument: There is no batch, or the share is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise InvalidArgument(f"refit_weights: share={share!r} must lie between 0 and 1")

    def refit(rows: Tensor, moment: Tensor) -> Tensor:
        return _refitted(rows, moment, share, penalty)

    return change_by_inputs(model, inputs, refit, shortest_row, progress, skip_broken=True)


def _refitted(rows: Tensor, moment: Tensor, share: float, penalty: Penalty) -> Tensor:
    """Rows fitted to their outputs."""
    sizes, directions = torch.linalg.eigh(moment)
    sizes = sizes.clamp_min(0)
    largest = float(sizes.max())
    if not largest > 0:
        return rows
    turned = rows @ directions
    sizes /= largest
    if penalty == "inputs":
        penalties = FITTED_PENALTY * sizes.mean()
    else:
        penalties = torch.cat([_penalties(some, sizes, share) for some in turned.split(_BLOCK)])
        computing = penalties > _SMALLEST
        if penalty == "weights" and bool(computing.any()):
            penalties = penalties[computing].quantile(_QUARTILE).expand_as(penalties)
    fitted: Tensor = (turned * sizes / (sizes + penalties)) @ directions.T
    return fitted


def _penalties(turned: Tensor, sizes: Tensor, share: float) -> Tensor:
    """The penalty of each row that moves its outputs by a share, ``[rows, 1]``.

    That of a row that computes nothing is the smallest.

    Args:
        turned: Rows in the directions of the moment, ``[rows, entries]``.
        sizes: The moment there, 1 at most, ``[entries]``.
        share: Of the second moment of the outputs.
    """
    outputs = turned.square() * sizes
    allowed = share * outputs.sum(1, keepdim=True)
    low = torch.full_like(allowed, -_REACH)
    high = -low
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        penalty = middle.exp()
        moved = ((penalty / (sizes + penalty)).square() * outputs).sum(1, keepdim=True)
        below = moved <= allowed
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return torch.where(allowed > 0, low.exp(), _SMALLEST)


def _watched(model: nn.Module, shortest_row: int) -> dict[str, Watched]:
    """Every weight with rows of the right length, once."""
    weights = {}
    for name, module in model.named_modules():
        if getattr(module, "transposed", False):
            continue
        for attribute in _ATTRIBUTES:
            weight = module._parameters.get(attribute)
            if weight is None or not (
                is_weight_module(module) or isinstance(module, nn.MultiheadAttention)
            ):
                continue
            entries = weight[0].numel() if len(weight) else 0
            if shortest_row <= entries <= _WIDEST:
                place = f"{name}.{attribute}" if name else attribute
                groups = getattr(module, "groups", 1)
                weights[place] = Watched(module, weight, slice(0, entries), groups)
    return weights


_ATTRIBUTES = "weight", "in_proj_weight"
