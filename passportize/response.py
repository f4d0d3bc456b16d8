r"""The response of a weight to a passport, and the sign loss on it.

A passport enters the published scheme only through the average of a convolution,
``u = Avg(W * p)``, which is linear in ``p``: ``u = rows(W) @ s`` with ``s`` the mean patch of
``p`` (:mod:`passportize.image_passport`). So a branch stores one vector per side and pays for one
matrix-vector product.

Normalised response of channel ``c`` (``keyed`` and ``signature``), with ``s`` in {-1, +1}^D:

    u_c = k_c * (w_c . s) / |w_c|        about N(0, 1) for weights that do not know ``s``

``k_c`` is the sign of the public scale where the site is ``signed``, else 1. Which of the two is
immune to a pirate's sign flips depends on the symmetry of the network at that place: with
statistics per channel and the anchor upstream, ``(w_c, mean_c, scale_c)`` can change sign
together, so ``k_c`` must follow the scale; for LayerNorm and RMSNorm ``(scale_c, shift_c, the
consumer's column)`` can, and ``w_c`` stays, so it must not. Rescaling a channel changes nothing in
either case.

Raw response (``paper``): ``u_c = w_c . s``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["normalised_responses", "raw_responses", "sign_penalty"]


def raw_responses(rows: Sequence[Tensor], pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Responses to both sides of a passport, as published: ``rows @ s``.

    Args:
        rows: Rows of each part of the anchor, ``[channels_i, fan_in_i]``.
        pairs: Gamma and beta vector of each part, ``[fan_in_i]``, or ``[groups, fan_in_i]`` where
            every group of a convolution has its own mean patch.

    Returns:
        ``[channels, 2]`` in at least float32: gamma responses, beta responses.
    """
    return torch.cat(
        [_products(part, gamma, beta) for part, (gamma, beta) in zip(rows, pairs, strict=True)]
    )


def normalised_responses(
    rows: Sequence[Tensor], pairs: Sequence[tuple[Tensor, Tensor]], signs: Tensor | None
) -> Tensor:
    """Responses in standard deviations, immune to rescaling; ``[channels, 2]``.

    Args:
        rows: As in :func:`raw_responses`.
        pairs: As in :func:`raw_responses`, entries -1 and +1.
        signs: Sign of the public scale, ``[channels]``, or None where the site is not signed.
    """
    parts = []
    for part, (gamma, beta) in zip(rows, pairs, strict=True):
        exact = _at_least_float32(part)
        # A row of zeros (a pruned channel) answers 0 instead of NaN.
        length = torch.linalg.vector_norm(exact, dim=1, keepdim=True).clamp_min(1e-12)
        parts.append(_products(exact, gamma, beta) / length)
    responses = torch.cat(parts) if len(parts) > 1 else parts[0]
    return responses if signs is None else responses * signs.to(responses.dtype).unsqueeze(1)


def sign_penalty(
    response: Tensor, bits: Tensor, margin: float, parts: Sequence[tuple[int, float]]
) -> Tensor:
    """Hinge on the gamma responses: ``sum_c max(0, margin - b_c u_c) / rate_c``.

    The published loss (DeepIPR, "Passport-aware Normalization") is the same without the division.
    With ``rate_c = sqrt(D_c)``: for the normalised response the gradient by ``w_c`` has length ``sqrt(D_c) / |w_c|``, so the
    division makes one step the same relative change for a 3x3x512 convolution and for a 1x1x16
    one, and keeps training stable at learning rates where plain training is.

    Args:
        response: Gamma responses, ``[channels]``.
        bits: Signature bits as -1 and +1, ``[channels]``.
        margin: Distance to keep from zero.
        parts: Number of channels and rate of every part of the anchor.
    """
    hinge = torch.relu(margin - bits * response)
    sums = [
        part.sum() / rate
        for part, (_, rate) in zip(
            hinge.split([channels for channels, _ in parts]), parts, strict=True
        )
    ]
    return torch.stack(sums).sum() if len(sums) > 1 else sums[0]


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _products(rows: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    exact = _at_least_float32(rows)
    sides = torch.stack([gamma, beta], dim=-1).to(exact.dtype)
    if gamma.dim() == 1:
        return exact @ sides
    grouped = exact.reshape(gamma.shape[0], -1, exact.shape[1])
    return torch.bmm(grouped, sides).flatten(0, 1)
