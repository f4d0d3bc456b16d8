"""Rows behind a factor for each channel (LayerScale), read so that nothing added before counts.

A norm over channels takes away what all its channels have in common. Where a parameter ``f``
multiplies the outputs of a layer on their way there, a vector ``v`` may be added to its rows
divided by their factors, ``w_i + v / f_i``, and no output changes; with a large one all rows point
the same way, and so do their bits. ``f_i w_i`` less the mean of all ``f_j w_j`` does not move, and
a row answers to its signs whatever it is multiplied with, so what is read is that divided by
``f_i`` again: the row less ``mean(f w) / f_i``.

In an honest network the mean is small, so such a reading finds nearly all bits that rows as they
lie carry; where a factor is near zero it finds fewer. It is a look of its own, for suspects that
rows as they lie do not accept.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from passportize.signature.layout import Layout, anchor_of
from passportize.signature.rows import added_to_rows, anchor_rows
from passportize.signature.site import AnchorPart

__all__ = ["has_factors", "without_mean_of_products"]


def has_factors(layout: Layout) -> bool:
    """Whether any row of a layout lies behind a factor."""
    return any(part.factor for site in layout.sites for part in anchor_of(site).parts)


def without_mean_of_products(
    layout: Layout, tensors: Mapping[str, Tensor], found: Mapping[str, str]
) -> dict[str, Tensor]:
    """A suspect's tensors, with the mean of factor times row taken out of rows behind factors.

    What a suspect lacks of factors counts as 1: whoever exports a network may have put them into
    the weights.

    Args:
        layout: Where the bits lie.
        tensors: The suspect's tensors by name; left as they are.
        found: The suspect's name for the weights of the layout.
    """
    changed = dict(tensors)
    parts = {part for site in layout.sites for part in anchor_of(site).parts if part.factor}
    for part in sorted(parts, key=lambda part: (part.weight, part.start)):
        name = found.get(part.weight)
        if name is not None:
            factors = _factors(tensors, part, name)
            changed[name] = _without_mean(changed[name].detach().to("cpu"), part, factors)
    return changed


def _without_mean(weight: Tensor, part: AnchorPart, factors: Tensor) -> Tensor:
    rows = anchor_rows(weight.double(), part)
    mean = (factors[:, None] * rows).mean(0)
    # A channel with the factor 0 says nothing, whatever its row is.
    divided = torch.where(factors[:, None] == 0, 0.0, mean / factors[:, None])
    return added_to_rows(weight.double(), part, -divided)


def _factors(tensors: Mapping[str, Tensor], part: AnchorPart, name: str) -> Tensor:
    """Float64 ``[channels]``, the largest of them 1."""
    there = tensors.get(_beside(part.factor, part.weight, name))
    if there is None or there.numel() != part.channels or there.is_complex():
        return torch.ones(part.channels, dtype=torch.float64, device="cpu")
    factors = there.detach().to("cpu", torch.float64).flatten()
    largest = factors.abs().max()
    return factors / largest if bool(largest > 0) else factors


def _beside(wanted: str, weight: str, name: str) -> str:
    """The suspect's name for a tensor, where it calls a weight ``name``; empty if that is open."""
    if name.endswith(weight):
        return name.removesuffix(weight) + wanted
    removed = weight.removesuffix(name)
    return wanted.removeprefix(removed) if wanted.startswith(removed) else ""
