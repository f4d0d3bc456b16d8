"""Putting a signature into weights at once: in closed form, without data and without training.

The sign loss turns rows step by step, which takes many steps where an optimizer moves every entry
by a fixed amount (AdamW) or rows are short. Here every row is turned by the least angle that takes
its gauge and its bit past the margin, before training starts; the sign loss then holds them there.
Freshly drawn weights lose nothing: a row that was turned a little is as random as before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from passportize.errors import EmbeddingFailed, InvalidArgument
from passportize.layers.computed import effective_weight, set_effective_weight, sources_of
from passportize.layers.model import passport_layers, switch_of
from passportize.layers.private_branch import Branch
from passportize.signature.rows import added_to_rows, anchor_rows

__all__ = ["Embedding", "embed_signature"]

_ROUNDS = 50
"""One is enough for a weight that answers to one site; those that share a weight take turns."""


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
    """

    bits: int
    before: int
    after: int
    change: float
    largest_change: float

    def __str__(self) -> str:
        return (
            f"{self.after} of {self.bits} bits, {self.before} before; weights changed by "
            f"{self.change:.1%}, the one that changed most by {self.largest_change:.1%}"
        )


@torch.no_grad()
def embed_signature(model: nn.Module, margin: float | None = None) -> Embedding:
    """Turn every row of the bound weights by the least angle that puts its signature bit in.

    Call it between :func:`~passportize.passportize` and the training, before the model is sharded
    or its weights are copied (for an average of the weights, say). Weights that are trained
    already lose some accuracy, which fine-tuning brings back; until then running statistics of
    batch norms do not quite fit either. The lengths of rows stay as they are, except with
    ``paper``, whose response is not normalised.

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
            that of each site's config. A smaller one changes less and withstands less.

    Returns:
        How many bits are in, and how far the weights moved. Rows of zeros carry none.

    Raises:
        NotPassportized: The model carries no private branch.
        PassportLocked: The private branch was loaded without its secret.
        EmbeddingFailed: A weight is sharded or has no values. All weights are as before.
        InvalidArgument: The margin makes no sense.
    """
    switch_of(model)
    if margin is not None and not (0 < margin < math.inf):
        raise InvalidArgument(f"embed_signature: margin={margin!r} must be a number above 0")
    branches = [layer.passport for layer in passport_layers(model).values() if layer.passport.bound]
    owners: dict[str, tuple[nn.Module, str]] = {
        part.weight: (owner, attribute)
        for branch in branches
        if branch.weights is not None
        for owner, attribute, part in branch.weights.owners
    }
    # What a weight is computed from, if it is, and itself if not.
    sources = {id(source): source for place in owners.values() for source in sources_of(*place)}
    for name, place in owners.items():
        for source in sources_of(*place):
            _check(name, source)
    before = sum(branch.matched() for branch in branches)
    lengths = {name: effective_weight(*place).clone() for name, place in owners.items()}
    kept = [(source, source.clone()) for source in sources.values()]
    try:
        for _ in range(_ROUNDS):
            moved = [_embed(branch, margin) for branch in branches]
            if not any(moved):
                break
        added = [
            _square_lengths(effective_weight(*place), lengths[name])
            for name, place in owners.items()
        ]
        after = sum(branch.matched() for branch in branches)
        return _report(branches, before, after, added)
    except BaseException:
        for source, values in kept:
            source.copy_(values)
        raise


def _report(
    branches: list[Branch], before: int, after: int, added: list[tuple[float, float]]
) -> Embedding:
    ratios = [math.sqrt(change / length) for change, length in added if length > 0]
    length = sum(length for _, length in added)
    change = math.sqrt(sum(change for change, _ in added) / length) if length > 0 else 0.0
    bits = sum(branch.site.bits for branch in branches)
    return Embedding(bits, before, after, change, max(ratios, default=0.0))


def _embed(branch: Branch, margin: float | None) -> bool:
    """Move the rows of one site; whether any had to."""
    assert branch.weights is not None
    reach = branch.config.margin if margin is None else margin
    moved = False
    start = 0
    for (owner, attribute, part), side in zip(
        branch.weights.owners, branch.secret.sides, strict=True
    ):
        # On the CPU, where float64 exists and every machine computes the same.
        values = effective_weight(owner, attribute).cpu()
        rows = anchor_rows(values, part, side.window).double()
        bits = branch.secret.bits[start : start + part.channels].cpu().double()
        start += part.channels
        wanted = branch.formulation.turned(rows, side.to(rows.device), bits, reach)
        if wanted is not None:
            moved = True
            _set(
                owner,
                attribute,
                part.weight,
                added_to_rows(values, part, wanted - rows, side.window),
            )
    return moved


def _set(owner: nn.Module, attribute: str, name: str, value: Tensor) -> None:
    device = next(iter(sources_of(owner, attribute))).device
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
