"""Putting a signature into a trained model where its layers bear it and a thief cannot drop it.

A few batches of inputs, without labels, say what each layer multiplies its weight with. Their
second moment says where a change goes (:mod:`passportize.signature.cheapest_rows`); means and
variances that move along are put right in closed form. Layers are taken in the order of the forward
pass, as many at a time as memory allows, each on inputs that the layers turned before give.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from passportize.signature.cheapest_rows import FIRST, Depth, cheapest_rows, rows_at_share
from passportize.signature.metric import Metric
from passportize.signature.rows import added_to_rows, anchor_rows
from passportize.signature.site import AnchorPart
from passportize.signature.vectors import SignVectors
from passportize.tracing.layer_inputs import Moments
from passportize.training.input_moments import Watched, moments_in_order
from passportize.training.marked_rows import MarkedRows, MarkedWeight
from passportize.utils.progress import Progress

__all__ = ["turn_by_output"]

_ROUNDS = 4
"""Rows that are read less the mean of all rows move a little with every other one."""


def turn_by_output(
    weights: Mapping[str, MarkedWeight],
    model: nn.Module,
    calibration: Iterable[Any],
    output_share: float,
    progress: Progress | None = None,
) -> int:
    """Turn the rows of all weights whose inputs can be seen; the others stay as they are.

    Args:
        weights: What is to carry bits, by the name of the weight.
        model: The model that they belong to.
        calibration: Batches, as :func:`passportize.embed_signature` takes them.
        output_share: What the mark may make of the variance of what marked rows compute.
        progress: Called with batches done and their number.

    Returns:
        Number of bits whose rows were turned so, or had no need.

    Raises:
        InvalidArgument: There is no batch.
    """
    weights = {name: each for name, each in weights.items() if each.choose_block()}
    watched = {
        name: Watched(each.owner, each.values, each.block, each.rows[0].part.groups)
        for name, each in weights.items()
    }
    bits, level = 0, FIRST
    for name, moments in moments_in_order(model, watched, calibration, "calibration=", progress):
        turning = _Turning(weights[name], moments, output_share, level)
        bits += turning.turn()
        level = turning.first
    return bits


class _Metrics:
    """In which directions one weight's rows change; each moment is computed once."""

    def __init__(self, moments: Moments) -> None:
        self.moments = moments
        self._known: dict[tuple[bool, int], Metric] = {}

    def of(self, centred: bool, group: int) -> Metric:
        """For the rows of one group; about the mean of its inputs or about zero."""
        key = centred, group
        if key not in self._known:
            self._known[key] = Metric(self.moments.moment(centred, group))
        return self._known[key]


class _Turning:
    """The turning of one weight's rows, in a few rounds.

    Attributes:
        first: The level that a search begins with, and the first one found after it: the next
            weight's is hardly far off.
    """

    def __init__(
        self, weight: MarkedWeight, moments: Moments, output_share: float, first: float
    ) -> None:
        self._weight, self._metrics = weight, _Metrics(moments)
        self._output_share, self.first = output_share, first
        # By piece and group.
        self._depths: dict[tuple[int, int], Depth] = {}

    def turn(self) -> int:
        """Turn the rows, and put right what moves along; how many bits that are."""
        weight = self._weight
        values, moments = weight.values, self._metrics.moments
        groups = weight.rows[0].part.groups
        if len(moments.second) != groups or not bool(torch.isfinite(moments.second).all()):
            return 0
        start = exact = values.cpu()
        for _ in range(_ROUNDS):
            moved = False
            for number, piece in enumerate(weight.rows):
                added = self._added(number, piece, exact)
                if added is None:
                    continue
                moved = True
                exact = added_to_rows(exact, piece.part, added, weight.block, piece.vectors.rows)
            if not moved:
                break
        if exact is not start:
            _put_right(weight, start, exact, self._metrics)
            values.copy_(exact)
        self.first = next((depth.level for depth in self._depths.values()), self.first)
        return sum(piece.part.bits for piece in weight.rows)

    def _added(self, number: int, piece: MarkedRows, values: Tensor) -> Tensor | None:
        """What to add to the rows of one piece; the first round sets the depth of each group."""
        part, vectors, block = piece.part, piece.vectors, self._weight.block
        rows = vectors.picked(anchor_rows(values, part, block)).double()
        per_group = values.shape[0] // part.groups
        mean_matters = part.centred or (self._weight.bias is None and not piece.has_norm_behind)
        added = None
        for group in sorted(set((piece.numbers // per_group).tolist())):
            own = (piece.numbers // per_group == group).nonzero().flatten()
            metric = self._metrics.of(not mean_matters, group)
            some = rows[own], SignVectors(vectors.codes[own], vectors.offset - block.start)
            bits, margin, centred = piece.bits[own], piece.margin, part.centred
            depth = self._depths.get((number, group))
            if depth is None:
                found, depth = rows_at_share(
                    *some, bits, margin, metric, self._output_share, centred, self.first
                )
                # Later rounds only see to it that whole rows keep the margin.
                self._depths[number, group] = depth._replace(used=False)
            else:
                found = cheapest_rows(*some, bits, margin, metric, depth, centred)
            if found is not None:
                added = torch.zeros_like(rows) if added is None else added
                added[own] = found
        return added


def _put_right(weight: MarkedWeight, before: Tensor, after: Tensor, metrics: _Metrics) -> None:
    """Move biases and running statistics along with what the layer computes.

    With ``m`` and ``S`` mean and covariance of the inputs, the mean of a row's output moves by ``dw
    . m``, which the bias takes away again or the running mean of the norm follows, and its variance
    by ``w' S w - w S w``.
    """
    if any(piece.part.centred for piece in weight.rows):
        return
    corrected = torch.zeros(before.shape[0], dtype=torch.bool, device="cpu")
    for piece in weight.rows:
        part, block = piece.part, weight.block
        old, new = (
            piece.vectors.picked(anchor_rows(values, _plain(part), block)).double()
            for values in (before, after)
        )
        numbers = piece.numbers
        group = numbers // (before.shape[0] // part.groups)
        mean = metrics.moments.mean()[group]
        shift = ((new - old) * mean).sum(1)
        bias = weight.bias
        if bias is not None:
            first = ~corrected[numbers]
            bias[numbers[first].to(bias.device)] -= shift[first].to(bias)
            corrected[numbers] = True
        if not piece.has_norm_behind:
            continue
        running_mean: Any = piece.norm.running_mean
        running_var: Any = piece.norm.running_var
        channels = (piece.channel + numbers - part.start).to(running_mean.device)
        if bias is None:
            running_mean[channels] += shift.to(running_mean)
        spread = torch.empty_like(shift)
        for index in sorted(set(group.tolist())):
            own = group == index
            covariance = metrics.of(True, index).moment
            difference, total = new[own] - old[own], new[own] + old[own]
            spread[own] = ((difference @ covariance) * total).sum(1)
        present = running_var[channels].double().cpu()
        # What the training saw of a channel may be less than what is subtracted of it here.
        running_var[channels] = torch.maximum(present + spread, 0.25 * present).to(running_var)


def _plain(part: AnchorPart) -> AnchorPart:
    return replace(part, less_mean_row=False)
