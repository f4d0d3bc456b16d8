"""Putting a signature into weights at once: in closed form, without training.

The sign loss turns rows step by step, which takes many steps where an optimizer moves every entry
by a fixed amount (AdamW) or rows are short. Here every row carries its bit before training starts;
the sign loss then holds it there. Entries of freshly drawn rows change their signs
(:mod:`passportize.signature.flipped_signs`): such weights are distributed as they were, so they
lose nothing and nobody can tell. Where that does not do, and in trained weights, a row is turned by
the least angle. Trained weights lose accuracy by it; a few inputs say which changes they hardly
notice (:mod:`passportize.training.calibration`).
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from passportize.config import OUTPUT_SHARE
from passportize.errors import EmbeddingFailed, InvalidArgument
from passportize.layers.computed import effective_weight, set_effective_weight, sources_of
from passportize.layers.integrity import check_layers
from passportize.layers.layer import PassportLayer
from passportize.layers.model import passport_layers, switch_of
from passportize.layers.private_branch import Branch
from passportize.signature.rows import added_to_rows, anchor_rows
from passportize.tracing.unchanged import FunctionCheck
from passportize.training.calibration import turn_by_output
from passportize.training.input_moments import first_batch, inputs_of
from passportize.training.marked_rows import companions, rows_of_layers
from passportize.utils.all_or_nothing import all_or_nothing
from passportize.utils.progress import Progress
from passportize.utils.trees import moved_inputs, place_of

__all__ = ["Embedding", "TrainedWeightsWarning", "embed_signature"]

_ROUNDS = 50
"""One is enough for a weight that answers to one site; those that share a weight take turns."""


_FRESH = 2.0
"""The margin in fresh rows at least: signs cost nothing, and training takes some of it off."""

_MEANS = 0.3
"""What a mean that is taken from rows may change of their responses, in standard deviations."""


@dataclass(frozen=True)
class Embedding:
    """What :func:`embed_signature` did.

    Attributes:
        bits: Signature bits of the model.
        before: How many of them the weights carried before.
        after: How many they carry now.
        change: Length of what was added over the length of what was there, over all weights that
            carry bits.
        largest_change: The same of the one weight that changed most.
        by_output: Bits whose rows were turned with a view to what their layers compute; those of
            the others by the least change of the rows.
        outputs_moved: With ``calibration``: what the marking made of the model's outputs on the
            first batch, mean square over their variance; None where that is not known.
    """

    bits: int
    before: int
    after: int
    change: float
    largest_change: float
    by_output: int = 0
    outputs_moved: float | None = None

    def __str__(self) -> str:
        told = (
            f"{self.after} of {self.bits} bits, {self.before} before; weights changed by "
            f"{self.change:.1%}, the one that changed most by {self.largest_change:.1%}"
        )
        if self.outputs_moved is None:
            return told
        return f"{told}; outputs moved by {self.outputs_moved:.2%} of their variance"


class TrainedWeightsWarning(UserWarning):
    """Weights that are trained already were turned without regard to what their layers compute."""


@all_or_nothing
@torch.no_grad()
def embed_signature(
    model: nn.Module,
    margin: float | None = None,
    *,
    calibration: Iterable[Any] | None = None,
    output_share: float = OUTPUT_SHARE,
    progress: Progress | None = None,
) -> Embedding:
    """Turn every row that is to carry a bit by the least change that puts it in.

    Call it between :func:`~passportize.passportize` and the training, before the model is sharded
    or its weights are copied (for an average of the weights, say). The lengths of rows then stay
    as they are, except with ``paper``, whose response is not normalised.

    Weights that are trained already would lose accuracy so. Give ``calibration``, a few dozen
    inputs, and what is kept small is the change of what each layer computes; biases and running
    statistics follow, and nothing has to be trained. Use :meth:`PassportConfig.trained` with it.

    >>> import passportize as pp
    >>> model = nn.Sequential(nn.Linear(8, 64), nn.LayerNorm(64))
    >>> passport = pp.Passport.generate("Acme")
    >>> model = pp.passportize(model, passport, example_inputs=torch.zeros(2, 8))
    >>> embedding = embed_signature(model)
    >>> embedding.after, embedding.bits
    (64, 64)

    Args:
        model: A passportized model.
        margin: Distance to leave from zero, in the units of ``PassportConfig.margin``; by default
            that of each site's config, and at least 2 in freshly drawn weights. A smaller one
            changes less and withstands less.
        calibration: Batches of inputs as the model is used: tensors ``[batch, ...]``, dicts of
            keyword arguments, or pairs of inputs and labels, which are ignored. Read several
            times; what can be read only once is kept in memory. The model runs in eval mode.
        output_share: With ``calibration``: what the mark may make of the variance of what marked
            rows compute. The more, the deeper it lies in directions that inputs use, and the more
            a thief loses who projects it away; a smaller one disturbs the outputs less.
        progress: With ``calibration``: called with the number of batches done and their total.

    Returns:
        How many bits are in, and how far the weights moved. Rows of zeros carry none.

    Raises:
        NotPassportized: The model carries no private branch.
        PassportLocked: The private branch was loaded without its secret.
        BranchLost: Layers were replaced, copied or patched after surgery.
        EmbeddingFailed: A weight is sharded or has no values. All weights are as before.
        InvalidArgument: The margin, the share or the calibration makes no sense.

    Warns:
        TrainedWeightsWarning: The norms are no longer as they were made, and there is no
            ``calibration``.
    """
    check_layers(model, switch_of(model))
    if margin is not None and not (0 < margin < math.inf):
        raise InvalidArgument(f"embed_signature: margin={margin!r} must be a number above 0")
    if not 0 < output_share < 1:
        raise InvalidArgument(f"embed_signature: output_share={output_share!r} must lie in (0, 1)")
    layers = [layer for layer in passport_layers(model).values() if layer.passport.bound]
    branches = [layer.passport for layer in layers]
    places = [
        place
        for branch in branches
        if branch.weights is not None
        for place in branch.weights.owners
    ]
    owners: dict[str, tuple[nn.Module, str]] = {
        part.weight: (owner, attribute) for owner, attribute, part in places
    }
    # What a weight is computed from, if it is, and itself if not.
    sources = {id(source): source for place in owners.values() for source in sources_of(*place)}
    for name, place in owners.items():
        for source in sources_of(*place):
            _check(name, source)
    before = sum(branch.matched() for branch in branches)
    weights = {name: effective_weight(*place).clone() for name, place in owners.items()}
    kept = [(source, source.clone()) for source in sources.values()]
    marked = rows_of_layers(layers, margin)
    beside = companions(marked) if calibration is not None else []
    kept += [(tensor, tensor.clone()) for tensor in beside]
    by_output, check = 0, None
    if isinstance(calibration, Iterator):
        calibration = list(calibration)
    if calibration is None and any(_trained(layer) for layer in layers):
        warnings.warn(
            f"{type(model).__name__} is trained already, and its weights lose accuracy by this "
            "until they are trained on; give calibration=, a few batches of inputs, to keep what "
            "the layers compute",
            TrainedWeightsWarning,
            stacklevel=4,
        )
    try:
        if calibration is not None:
            check = _check_of_outputs(model, calibration)
            by_output = turn_by_output(marked, model, calibration, output_share, progress)
        elif _fresh(layers):
            uses = Counter(
                id(source)
                for owner, attribute, _ in places
                for source in sources_of(owner, attribute)
            )
            fresh = {source for source, count in uses.items() if count == 1}
            for branch in branches:
                _embed(branch, margin, fresh)
        for _ in range(_ROUNDS):
            moved = [_embed(branch, margin) for branch in branches]
            if not any(moved):
                break
        added = [
            _square_lengths(effective_weight(*owners[name]), weight)
            for name, weight in weights.items()
        ]
        after = sum(branch.matched() for branch in branches)
        bits = sum(branch.site.bits for branch in branches)
        outputs_moved = None if check is None else check.moved(model)
        return Embedding(bits, before, after, *_changes(added), by_output, outputs_moved)
    except BaseException:
        for tensor, values in kept:
            tensor.copy_(values)
        raise


def _check_of_outputs(model: nn.Module, calibration: Iterable[Any]) -> FunctionCheck:
    """What the model computes on the first batch, before it is marked."""
    first = first_batch(calibration, "calibration=")
    return FunctionCheck(model, moved_inputs(inputs_of(first), place_of(model)))


def _changes(added: list[tuple[float, float]]) -> tuple[float, float]:
    """Length of what was added over that of what was there: of all weights, and the largest."""
    ratios = [math.sqrt(change / length) for change, length in added if length > 0]
    length = sum(length for _, length in added)
    change = math.sqrt(sum(change for change, _ in added) / length) if length > 0 else 0.0
    return change, max(ratios, default=0.0)


def _fresh(layers: list[PassportLayer]) -> bool:
    """Whether weights are as they were drawn: there are norms that would tell, and none does."""
    telling = [
        layer
        for layer in layers
        if getattr(layer, "num_batches_tracked", None) is not None
        or (layer.scale_name and getattr(layer, layer.scale_name, None) is not None)
    ]
    return bool(telling) and not any(_trained(layer) for layer in layers)


def _trained(layer: PassportLayer) -> bool:
    """Whether a norm has seen data, or its factors have moved from a constant."""
    tracked = getattr(layer, "num_batches_tracked", None)
    if isinstance(tracked, Tensor) and not tracked.is_meta and int(tracked) > 0:
        return True
    factors = [getattr(layer, name, None) for name in (layer.scale_name, layer.shift_name) if name]
    return any(
        isinstance(factor, Tensor)
        and not factor.is_meta
        and factor.numel() > 1
        and bool((factor != factor.flatten()[0]).any())
        for factor in factors
    )


def _embed(branch: Branch, margin: float | None, fresh: Collection[int] = ()) -> bool:
    """Move the rows of one site, or change the signs of fresh ones; whether any had to.

    Args:
        branch: Of the site.
        margin: See :func:`embed_signature`.
        fresh: Ids of freshly drawn tensors: rows of these alone, by signs alone.
    """
    assert branch.weights is not None
    moved = False
    start = 0
    for (owner, attribute, part), side in zip(
        branch.weights.owners, branch.secret.sides, strict=True
    ):
        reach = branch.config.margin if margin is None else margin
        signs_alone = id(sources_of(owner, attribute)[0]) in fresh
        if fresh and not signs_alone:
            start += part.bits
            continue
        if signs_alone and margin is None:
            reach = max(reach, _FRESH)
        # On the CPU, where float64 exists and every machine computes the same.
        values = effective_weight(owner, attribute).cpu()
        side = side.to(values.device)
        read = part
        if signs_alone and (part.centred or part.less_mean_row):
            # Signs are those of the entries themselves; what is taken from them moves a little.
            read = replace(part, centred=False, less_mean_row=False)
            reach += _MEANS
        rows = side.picked(anchor_rows(values, read, side.window)).double()
        bits = branch.secret.bits[start : start + part.bits].cpu().double()
        start += part.bits
        act = branch.formulation.flipped if signs_alone else branch.formulation.turned
        wanted = act(rows, side, bits, reach)
        if wanted is not None:
            moved = True
            added = added_to_rows(values, part, wanted - rows, side.window, side.rows)
            _set(owner, attribute, part.weight, added)
    return moved


def _set(owner: nn.Module, attribute: str, name: str, value: Tensor) -> None:
    device = sources_of(owner, attribute)[0].device
    try:
        set_effective_weight(owner, attribute, value.to(device))
    except ValueError as error:
        raise EmbeddingFailed(
            f"{name} is computed, and {error}; train with the sign loss instead, or take the "
            "parametrization off first"
        ) from None


def _square_lengths(now: Tensor, before: Tensor) -> tuple[float, float]:
    """Of what was added, and of what was there."""
    exact = before.cpu().double()
    return float((now.cpu().double() - exact).square().sum()), float(exact.square().sum())


def _check(name: str, weight: Tensor) -> None:
    if weight.is_meta:
        raise EmbeddingFailed(f"{name} has no values; load or initialise the model first")
    if hasattr(weight, "device_mesh"):
        raise EmbeddingFailed(
            f"{name} is sharded; embed the signature before fully_shard, or leave it to training"
        )
