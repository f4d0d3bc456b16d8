"""Rows that are to carry bits, by the weight that they lie in, and what moves along with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from passportize.layers.computed import effective_weight, is_computed
from passportize.layers.layer import PassportLayer
from passportize.layers.private_branch import has_statistics
from passportize.signature.formulations import NORMALISED
from passportize.signature.rows import added_to_rows, anchor_fan_in, anchor_rows
from passportize.signature.site import Anchor, AnchorPart
from passportize.signature.turning import turned_rows
from passportize.signature.vectors import SignVectors

__all__ = ["MarkedRows", "MarkedWeight", "companions", "rows_of_layers", "turn_by_weights"]

_WIDEST = 4096
"""Entries of a row that a change may touch; of longer rows a run that has the window in it."""


@dataclass
class MarkedRows:
    """Rows of one part of an anchor.

    Attributes:
        part: The part.
        vectors: Of the rows that carry bits, on the CPU.
        bits: -1 and +1, float64 ``[rows]``, on the CPU.
        margin: Distance to leave from zero.
        norm: The norm that is bound to it.
        anchor: Its anchor.
        channel: The channel of the norm where the part starts.
    """

    part: AnchorPart
    vectors: SignVectors
    bits: Tensor
    margin: float
    norm: nn.Module
    anchor: Anchor
    channel: int

    @property
    def numbers(self) -> Tensor:
        """Which rows of the weight they are, int64 ``[rows]``."""
        rows = self.vectors.rows
        if rows is None:
            rows = torch.arange(self.part.channels, device="cpu")
        return rows + self.part.start

    @property
    def has_norm_behind(self) -> bool:
        """Whether a norm with running statistics reads the layer's own outputs."""
        return (
            has_statistics(self.norm)
            and self.anchor.rule in ("upstream", "concat", "autograd")
            and set(self.anchor.crossed) <= {"cat"}
        )


@dataclass
class MarkedWeight:
    """One weight and all rows of it that carry bits.

    Attributes:
        owner: The module that holds it.
        attribute: Its name there.
        rows: What is read from it, norm by norm.
        block: Entries of a row that a change may touch.
    """

    owner: nn.Module
    attribute: str
    rows: list[MarkedRows] = field(default_factory=list)
    block: slice = field(default_factory=lambda: slice(0, 0))

    @property
    def values(self) -> Tensor:
        """The weight itself."""
        return effective_weight(self.owner, self.attribute)

    @property
    def bias(self) -> Tensor | None:
        """The bias of the same layer."""
        name = self.attribute.replace("weight", "bias")
        bias = getattr(self.owner, name, None)
        return bias if isinstance(bias, nn.Parameter) and bias.dim() == 1 else None

    def choose_block(self) -> bool:
        """Set ``block``; False where rows are of a kind whose inputs are not looked at.

        Those are rows that read channels instead of making them, of transposed convolutions,
        mixtures of kernels and computed weights, several side by side, or with windows too far
        apart.
        """
        first, last = None, 0
        for each in self.rows:
            part = each.part
            if is_computed(self.owner, self.attribute):
                return False
            if part.axis != "output" or part.transposed or part.repeats > 1 or part.expert_shape:
                return False
            window = each.vectors.window
            first = window.start if first is None else min(first, window.start)
            last = max(last, window.stop)
        if first is None or last - first > _WIDEST:
            return False
        fan_in = anchor_fan_in(tuple(self.values.shape), self.rows[0].part)
        if fan_in <= _WIDEST:
            first, last = 0, fan_in
        else:
            # Around the windows, as far as memory allows.
            first = max(0, min(first - (_WIDEST - (last - first)) // 2, fan_in - _WIDEST))
            last = first + _WIDEST
            if any(each.part.centred for each in self.rows):
                return False
        self.block = slice(first, last)
        return True


def rows_of_layers(
    layers: Iterable[PassportLayer], margin: float | None
) -> dict[str, MarkedWeight]:
    """The rows that two-branch layers read, by the name of the weight.

    Args:
        layers: Layers of a passportized model.
        margin: Distance to leave from zero; None for that of each layer.
    """
    weights: dict[str, MarkedWeight] = {}
    for layer in layers:
        branch = layer.passport
        anchor = branch.site.anchor
        if not branch.bound or branch.weights is None or anchor is None:
            continue
        if branch.formulation is not NORMALISED:
            continue
        start = channel = 0
        for (owner, attribute, part), side in zip(
            branch.weights.owners, branch.secret.sides, strict=True
        ):
            assert isinstance(side, SignVectors)
            bits = branch.secret.bits[start : start + part.bits].cpu().double()
            reach = branch.config.margin if margin is None else margin
            vectors = side.to(torch.device("cpu"))
            if part.bits:
                each = weights.setdefault(part.weight, MarkedWeight(owner, attribute))
                each.rows.append(MarkedRows(part, vectors, bits, reach, layer, anchor, channel))
            start, channel = start + part.bits, channel + part.channels
    return weights


def companions(weights: Mapping[str, MarkedWeight]) -> list[Tensor]:
    """Biases and running statistics that move along, each once."""
    found: dict[int, Tensor] = {}
    for weight in weights.values():
        if weight.bias is not None:
            found[id(weight.bias)] = weight.bias
        for each in weight.rows:
            for name in ("running_mean", "running_var"):
                value = getattr(each.norm, name, None)
                if isinstance(value, Tensor):
                    found[id(value)] = value
    return list(found.values())


def turn_by_weights(weights: Mapping[str, MarkedWeight]) -> bool:
    """Turn all rows that lack their bits at the least change of the rows; whether any did."""
    moved = False
    for weight in weights.values():
        for each in weight.rows:
            values = weight.values.cpu()
            vectors = each.vectors
            read = vectors.picked(anchor_rows(values, each.part, vectors.window)).double()
            turned = turned_rows(read, vectors, each.bits, each.margin)
            if turned is not None:
                moved = True
                added = turned - read
                changed = added_to_rows(values, each.part, added, vectors.window, vectors.rows)
                weight.values.copy_(changed)
    return moved
