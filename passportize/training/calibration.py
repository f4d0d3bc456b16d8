"""Putting a signature into a trained model at the least change of what its layers compute.

A few batches of inputs, without labels, say what each layer multiplies its weight with. Their
second moment is the price of a change (:mod:`passportize.signature.least_output`); means and
variances that move along are put right in closed form. Layers are taken in the order of the forward
pass, as many at a time as memory allows, each on inputs that the layers turned before give.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from passportize.errors import InvalidArgument
from passportize.layers.layer import PassportLayer
from passportize.layers.private_branch import Branch, has_statistics
from passportize.signature.formulations import NORMALISED
from passportize.signature.least_output import Metric, least_output_rows
from passportize.signature.rows import added_to_rows, anchor_fan_in, anchor_rows
from passportize.signature.site import AnchorPart
from passportize.signature.vectors import SignVectors
from passportize.tracing.layer_inputs import InputMoments, Moments, ReachedLast, observed
from passportize.utils.frozen import eager_mode, in_eval_mode, trial
from passportize.utils.trees import call_model, moved_inputs, place_of

__all__ = ["RIDGE", "Progress", "companions", "turn_by_output"]

Progress = Callable[[int, int], None]
"""Called with how many steps are done, and how many there are."""

RIDGE = 1.0
"""Multiple of the identity in the price of a change, in units of the mean of the second moment."""

_WIDEST = 4096
"""Entries of a row that a change may touch; of longer rows a run that has the window in it."""

_MEMORY = 1 << 29
"""Bytes that the moments of the layers of one pass may take."""

_ROUNDS = 4
"""Rows that are read less the mean of all rows move a little with every other one."""


@dataclass
class _Piece:
    """The rows of one part of one site."""

    layer: PassportLayer
    part: AnchorPart
    vectors: SignVectors
    bits: Tensor
    channel: int
    """Of the site, where the part starts."""


@dataclass
class _Weight:
    """One weight and all that is read from it."""

    owner: nn.Module
    attribute: str
    pieces: list[_Piece] = field(default_factory=list)
    block: slice = field(default_factory=lambda: slice(0, 0))

    @property
    def values(self) -> Tensor:
        value: Tensor = getattr(self.owner, self.attribute)
        return value

    @property
    def bias(self) -> Tensor | None:
        name = "bias" if self.attribute == "weight" else self.attribute.replace("weight", "bias")
        bias = getattr(self.owner, name, None)
        return bias if isinstance(bias, nn.Parameter) and bias.dim() == 1 else None


def turn_by_output(
    layers: Iterable[PassportLayer],
    model: nn.Module,
    calibration: Iterable[Any],
    margin: float | None,
    ridge: float,
    progress: Progress | None = None,
) -> int:
    """Turn the rows of all weights whose inputs can be seen; the others stay as they are.

    Args:
        layers: Two-branch layers of the model.
        model: The model.
        calibration: Batches, as :func:`passportize.embed_signature` takes them.
        margin: Distance to leave from zero; None for that of each site.
        ridge: Multiple of the identity, in units of the mean of the second moment.
        progress: Called with batches done and their number.

    Returns:
        Number of bits whose rows were turned so, or had no need.

    Raises:
        InvalidArgument: There is no batch.
    """
    weights = {name: each for name, each in _weights(layers).items() if _set_block(each)}
    if not isinstance(calibration, Iterable) or isinstance(calibration, (Tensor, str)):
        raise InvalidArgument(
            f"calibration= must be batches of inputs, [images] for one batch, not a "
            f"{type(calibration).__name__}"
        )
    if isinstance(calibration, Iterator):
        calibration = list(calibration)
    place = place_of(model)

    watched = (
        {name: each.owner for name, each in weights.items()},
        {name: each.values for name, each in weights.items()},
        {name: each.block for name, each in weights.items()},
    )

    def run(mode: InputMoments, batch: Any) -> None:
        mode.uses.clear()
        with contextlib.suppress(ReachedLast):
            call_model(model, moved_inputs(inputs_of(batch), place))

    with trial(model), in_eval_mode(model), eager_mode(), observed(*watched) as mode:
        mode.wanted = frozenset()
        first = next(iter(calibration), None)
        if first is None:
            raise InvalidArgument("calibration= gives no batch of inputs")
        run(mode, first)
    uses = dict(mode.uses)
    groups = list(_groups(list(uses), weights))
    steps = _Steps(len(groups), progress)
    bits = 0
    for group in groups:
        with trial(model), in_eval_mode(model), eager_mode(), observed(*watched) as mode:
            mode.wanted, mode.stop_after = frozenset(group), (group[-1], uses[group[-1]])
            for batch in calibration:
                run(mode, batch)
                steps.batch()
        steps.group()
        for name in group:
            bits += _turn(weights[name], mode.moments[name], margin, ridge)
    return bits


class _Steps:
    """Progress in batches, whose number is known after the first pass."""

    def __init__(self, groups: int, progress: Progress | None) -> None:
        self._groups, self._progress = groups, progress
        self._done, self._passes, self._batches = 0, 0, 0

    def batch(self) -> None:
        self._done += 1
        if self._progress is not None and self._batches:
            self._progress(self._done, self._batches * self._groups)

    def group(self) -> None:
        self._passes += 1
        if not self._batches:
            self._batches = self._done
            if self._progress is not None:
                self._progress(self._done, self._batches * self._groups)


def inputs_of(batch: Any) -> Any:
    """The inputs of a batch, which may come with labels."""
    if isinstance(batch, (tuple, list)) and not hasattr(batch, "_fields") and len(batch) == 2:
        return batch[0]
    return batch


def companions(layers: Iterable[PassportLayer]) -> dict[int, Tensor]:
    """Tensors beside the weights that :func:`turn_by_output` may change, by identity."""
    found: dict[int, Tensor] = {}
    for weight in _weights(layers).values():
        if weight.bias is not None:
            found[id(weight.bias)] = weight.bias
        for piece in weight.pieces:
            if has_statistics(piece.layer):
                for name in ("running_mean", "running_var"):
                    value = getattr(piece.layer, name)
                    found[id(value)] = value
    return found


def _weights(layers: Iterable[PassportLayer]) -> dict[str, _Weight]:
    weights: dict[str, _Weight] = {}
    for layer in layers:
        branch: Branch = layer.passport
        if not branch.bound or branch.weights is None or branch.formulation is not NORMALISED:
            continue
        start = channel = 0
        for (owner, attribute, part), side in zip(
            branch.weights.owners, branch.secret.sides, strict=True
        ):
            bits = branch.secret.bits[start : start + part.bits].cpu().double()
            assert isinstance(side, SignVectors)
            piece = _Piece(layer, part, side.to(torch.device("cpu")), bits, channel)
            if part.bits:
                each = weights.setdefault(part.weight, _Weight(owner, attribute))
                each.pieces.append(piece)
            start, channel = start + part.bits, channel + part.channels
    return weights


def _set_block(weight: _Weight) -> bool:
    """Choose the entries that a change may touch; whether the rows are of a kind that can be."""
    shape = tuple(weight.values.shape)
    first, last = None, 0
    for piece in weight.pieces:
        part = piece.part
        if part.axis != "output" or part.transposed or part.repeats > 1 or part.expert_shape:
            return False
        window = piece.vectors.window
        first = window.start if first is None else min(first, window.start)
        last = max(last, window.stop)
    if first is None or last - first > _WIDEST:
        return False
    fan_in = anchor_fan_in(shape, weight.pieces[0].part)
    if fan_in <= _WIDEST:
        first, last = 0, fan_in
    else:
        # Around the windows, as far as memory allows.
        first = max(0, min(first - (_WIDEST - (last - first)) // 2, fan_in - _WIDEST))
        last = first + _WIDEST
        if any(piece.part.centred for piece in weight.pieces):
            return False
    weight.block = slice(first, last)
    return True


def _groups(order: Sequence[str], weights: Mapping[str, _Weight]) -> Iterator[list[str]]:
    """Weights in the order in which they are used, as many at a time as memory allows."""
    group: list[str] = []
    taken = 0
    for name in order:
        weight = weights[name]
        size = 8 * weight.pieces[0].part.groups * (weight.block.stop - weight.block.start) ** 2
        if group and taken + size > _MEMORY:
            yield group
            group, taken = [], 0
        group.append(name)
        taken += size
    if group:
        yield group


def _turn(weight: _Weight, moments: Moments, margin: float | None, ridge: float) -> int:
    """Turn the rows of one weight, and put right what moves along."""
    values = weight.values
    groups = weight.pieces[0].part.groups
    if len(moments.second) != groups or not bool(torch.isfinite(moments.second).all()):
        return 0
    exact = values.cpu()
    start = exact
    for _ in range(_ROUNDS):
        moved = False
        for piece in weight.pieces:
            added = _added(weight, piece, exact, moments, margin, ridge)
            if added is None:
                continue
            moved = True
            exact = added_to_rows(exact, piece.part, added, weight.block, piece.vectors.rows)
        if not moved:
            break
    if exact is not start:
        _put_right(weight, start, exact, moments)
        values.copy_(exact)
    return sum(piece.part.bits for piece in weight.pieces)


def _added(
    weight: _Weight,
    piece: _Piece,
    values: Tensor,
    moments: Moments,
    margin: float | None,
    ridge: float,
) -> Tensor | None:
    part, vectors, block = piece.part, piece.vectors, weight.block
    rows = vectors.picked(anchor_rows(values, part, block)).double()
    reach = piece.layer.passport.config.margin if margin is None else margin
    numbers = _row_numbers(piece)
    per_group = values.shape[0] // part.groups
    mean_matters = part.centred or (weight.bias is None and not _follows(piece))
    added = None
    for group in sorted(set((numbers // per_group).tolist())):
        own = (numbers // per_group == group).nonzero().flatten()
        metric = Metric(moments.moment(not mean_matters, group), ridge)
        found = least_output_rows(
            rows[own],
            SignVectors(vectors.codes[own], vectors.offset - block.start),
            piece.bits[own],
            reach,
            metric,
            part.centred,
        )
        if found is not None:
            added = torch.zeros_like(rows) if added is None else added
            added[own] = found
    return added


def _row_numbers(piece: _Piece) -> Tensor:
    """Which rows of the weight the rows of a piece are, int64."""
    rows = piece.vectors.rows
    if rows is None:
        rows = torch.arange(piece.part.channels, device="cpu")
    return rows + piece.part.start


def _follows(piece: _Piece) -> bool:
    """Whether a norm with running statistics reads the layer's own outputs."""
    anchor = piece.layer.passport.site.anchor
    return (
        has_statistics(piece.layer)
        and anchor is not None
        and anchor.rule in ("upstream", "concat", "autograd")
        and set(anchor.crossed) <= {"cat"}
    )


def _put_right(weight: _Weight, before: Tensor, after: Tensor, moments: Moments) -> None:
    """Move biases and running statistics along with what the layer computes.

    With ``m`` and ``S`` mean and covariance of the inputs, the mean of a row's output moves by ``dw
    . m``, which the bias takes away again or the running mean of the norm follows, and its variance
    by ``w' S w - w S w``.
    """
    if any(piece.part.centred for piece in weight.pieces):
        return
    corrected = torch.zeros(before.shape[0], dtype=torch.bool, device="cpu")
    for piece in weight.pieces:
        part, block = piece.part, weight.block
        old, new = (
            piece.vectors.picked(anchor_rows(values, _plain(part), block)).double()
            for values in (before, after)
        )
        numbers = _row_numbers(piece)
        group = numbers // (before.shape[0] // part.groups)
        mean = moments.mean()[group]
        shift = ((new - old) * mean).sum(1)
        bias = weight.bias
        if bias is not None:
            first = ~corrected[numbers]
            bias[numbers[first].to(bias.device)] -= shift[first].to(bias)
            corrected[numbers] = True
        if not _follows(piece):
            continue
        running_mean: Any = piece.layer.running_mean
        running_var: Any = piece.layer.running_var
        channels = (piece.channel + numbers - part.start).to(running_mean.device)
        if bias is None:
            running_mean[channels] += shift.to(running_mean)
        spread = torch.empty_like(shift)
        for index in sorted(set(group.tolist())):
            own = group == index
            covariance = moments.moment(True, index)
            difference, total = new[own] - old[own], new[own] + old[own]
            spread[own] = ((difference @ covariance) * total).sum(1)
        present = running_var[channels].double().cpu()
        # What the training saw of a channel may be less than what is subtracted of it here.
        running_var[channels] = torch.maximum(present + spread, 0.25 * present).to(running_var)


def _plain(part: AnchorPart) -> AnchorPart:
    return replace(part, less_mean_row=False)
