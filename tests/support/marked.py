"""Weights that carry the bits of a key, made without a model."""

from __future__ import annotations

import torch
from torch import Tensor

from passportize.signature.layout import Layout, anchor_of
from passportize.signature.model_key import ModelKey
from passportize.signature.rows import added_to_rows, anchor_rows


def marked(key: ModelKey, layout: Layout, seed: int = 0, margin: float = 1.5) -> dict[str, Tensor]:
    """Random weights with every bit in; rows must not overlap.

    Args:
        key: Made from ``layout``.
        layout: Where the bits lie.
        seed: Of the weights.
        margin: Of the responses.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.randn(shape, generator=generator) for name, shape in layout.weights.items()
    }
    start, signs = 0, key.bits().double() * 2 - 1
    for index, site in enumerate(layout.sites):
        formulation = layout.formulation(index)
        for part, vectors in zip(anchor_of(site).parts, key.sides(index), strict=True):
            own = signs[start : start + part.bits]
            start += part.bits
            rows = vectors.picked(anchor_rows(weights[part.weight], part, vectors.window).double())
            turned = formulation.turned(rows, vectors, own, margin)
            if turned is not None:
                weights[part.weight] = added_to_rows(
                    weights[part.weight], part, turned - rows, vectors.window, vectors.rows
                )
    return weights
