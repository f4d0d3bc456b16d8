"""The response of a weight to a passport, and the sign loss on it.

A passport enters the published scheme only through the average of a convolution, ``u = Avg(W *
p)``, which is linear in ``p``: ``u = rows(W) @ s`` with ``s`` the mean patch of ``p``
(:mod:`passportize.passport.mean_patch`). So a branch stores a few vectors and pays for a thin
product.

Raw response of channel ``c`` (``paper``): ``u_c = w_c . s``. Its sign, the published signature
bit, flips when a thief changes the sign of a channel's row, mean and scale together, which leaves
the network's function as it is.

Normalised response (``keyed`` and ``signature``), with vectors in {-1, +1}^D of the row's own:

    a_c = w_c . s_c / |w_c|                      gauge
    u_c = sgn(a_c) (w_c . t_c) / |w_c|           gamma side
    v_c = w_c . r_c / |w_c|                      beta side

Each is about N(0, 1) for weights that do not know the vectors, so one margin suits every layer.
``t_c`` is ``s_c`` times a mask with as many +1 as -1, so ``s_c . t_c = 0`` and no sign of ``u``
is favoured, however short the row (with an odd number of entries it is 1, which favours one sign
a little; no p-value hangs on that, since the bits are coins of their own). ``u`` is even in
``w_c``: no sign flip, of whatever symmetry of the network, and no rescaling moves it, and nothing
has to be known about the norm, the activations or what was folded into the weight.

Where rows are long, ``w_c`` stands for a window of 256 consecutive entries at an offset that the
key decides for the layer. The change per channel that a margin takes and the noise that it
withstands are the same as for the whole row (both go with the mean square of an entry), and the
cost falls with the length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from passportize.signature.vectors import RawVectors, SignVectors
from passportize.utils.precision import at_least_float32

__all__ = [
    "Responses",
    "normalised_responses",
    "raw_responses",
    "raw_sign_penalty",
    "reach_of",
    "sign_penalty",
    "standardised",
]


class Responses(NamedTuple):
    """Responses of every channel, ``[channels]`` each, in at least float32.

    Attributes:
        gamma: ``u``; its sign is the signature bit.
        beta: ``v``.
        gauge: ``a``; zeros for the raw response, which has none.
        length: Length of the row (of its window) with the sign of ``a``: the unit in which a
            channel's input statistics are measured, since it changes sign and size with the row.
    """

    gamma: Tensor
    beta: Tensor
    gauge: Tensor
    length: Tensor


def raw_responses(rows: Sequence[Tensor], sides: Sequence[RawVectors]) -> Responses:
    """Responses to both sides of a passport, as published.

    Args:
        rows: Rows of each part of the anchor, ``[channels_i, fan_in_i]``.
        sides: Gamma and beta vector of each part.
    """
    products = torch.cat(
        [
            _products(at_least_float32(part), vectors.values)
            for part, vectors in zip(rows, sides, strict=True)
        ]
    )
    lengths = torch.cat([torch.linalg.vector_norm(at_least_float32(part), dim=1) for part in rows])
    return Responses(products[:, 0], products[:, 1], torch.zeros_like(lengths), lengths)


def normalised_responses(rows: Sequence[Tensor], sides: Sequence[SignVectors]) -> Responses:
    """Responses in standard deviations, immune to rescaling and to changes of sign.

    Args:
        rows: Rows of each part of the anchor, ``[channels_i, fan_in_i]``, or their windows; all
            rows of a part, or those that carry bits.
        sides: ``s``, ``t`` and ``r`` of every row of each part that carries a bit.
    """
    answers, lengths = [], []
    for part, side in zip(rows, sides, strict=True):
        picked = part if len(part) == len(side.codes) else side.picked(part)
        read = picked if part.shape[1] == side.entries else picked[:, side.window]
        read = at_least_float32(read)
        # A compiler fuses the plain formula by itself.
        standardise = _standardised if torch.compiler.is_compiling() else _Standardised.apply
        answer, length = standardise(read, side.codes)
        answers.append(answer)
        lengths.append(length)
    gauge, gamma, beta = _joined(answers, 1).unbind()
    sign = torch.where(gauge.detach() < 0, -1.0, 1.0).to(gauge.dtype)
    return Responses(gamma * sign, beta, gauge, _joined(lengths) * sign)


def standardised(rows: Tensor, signs: Tensor) -> tuple[Tensor, Tensor]:
    """Every row times its three vectors over its length, and the length.

    Args:
        rows: ``[channels, entries]``, in at least float32.
        signs: ``s``, ``t`` and ``r`` of each, ``[3, channels, entries]``.

    Returns:
        ``[3, channels]`` and ``[channels]``. A row of zeros (a pruned channel) answers 0 instead
        of NaN, and has no gradient.
    """
    # In units of its largest entry, since squares of tiny and huge ones leave the range of a float.
    largest = rows.detach().abs().amax(1, keepdim=True)
    unit = rows / largest.masked_fill(largest == 0, 1)
    # At least 1, as the largest entry is; a row of zeros stays one.
    length = torch.linalg.vector_norm(unit, dim=1).clamp_min(1)
    return torch.einsum("ce,kce->kc", unit, signs) / length, length * largest.squeeze(1)


def _standardised(rows: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`standardised` for vectors as they are stored.

    Args:
        rows: ``[channels, entries]``.
        codes: See :class:`~passportize.signature.vectors.SignVectors`.

    Returns:
        ``[3, channels]`` and ``[channels]``.
    """
    return standardised(rows, SignVectors(codes).signs(rows.dtype))


class _Standardised(torch.autograd.Function):
    """:func:`_standardised` with a gradient of two passes over the rows instead of many.

    It runs for every layer in every step. Second derivatives are right, too.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        answer, length = _standardised(rows, codes)
        ctx.save_for_backward(rows, codes, answer, length)
        ctx.set_materialize_grads(False)
        return answer, length

    @staticmethod
    def backward(
        ctx: Any, answer_gradient: Tensor | None, length_gradient: Tensor | None
    ) -> tuple[Tensor | None, None]:
        rows, codes, answer, length = ctx.saved_tensors
        gradient, along = None, None
        dead = length == 0
        length = length.masked_fill(dead, 1)
        if answer_gradient is not None:
            scaled = (answer_gradient / length).masked_fill(dead, 0)
            gradient = torch.einsum("kc,kce->ce", scaled, SignVectors(codes).signs(rows.dtype))
            along = -(scaled * answer).sum(0)
        if length_gradient is not None:
            along = length_gradient if along is None else along + length_gradient
        if along is None:
            return None, None
        along = (along / length)[:, None]
        if gradient is None:
            return rows * along, None
        return torch.addcmul(gradient, rows, along), None


def raw_sign_penalty(responses: Responses, bits: Tensor, margin: float) -> Tensor:
    """The published hinge: ``sum_c max(0, margin - b_c u_c)`` (DeepIPR, NeurIPS 2019, sign loss).

    Args:
        responses: Raw responses.
        bits: Signature bits as -1 and +1, ``[channels]``.
        margin: Distance to keep from zero.
    """
    return torch.relu(margin - bits * responses.gamma).sum()


def sign_penalty(
    responses: Responses, bits: Tensor, margin: float, parts: Sequence[tuple[int, int]]
) -> Tensor:
    """Two hinges per channel, on the gauge and on the bit.

    ``sum_c |w_c|^2 / sqrt(D_c) (max(0, m_c - |a_c|) + max(0, m_c - b_c u_c))``

    The gradients of ``a`` and ``u`` by ``w_c`` are ``sqrt(D_c) / |w_c|`` long, so with the factor
    in front (a constant for the gradient) one step is the same relative change for a 3x3x512
    convolution and for a 1x1x16 one, at the start and after weight decay: training is stable at
    the learning rates where plain training is. ``m_c`` is at most ``sqrt(D_c) / 4``, so
    that gauge and bit never take more than an eighth of a row's square.

    Args:
        responses: Normalised responses.
        bits: Signature bits as -1 and +1, ``[channels]``.
        margin: Distance to keep from zero, in standard deviations.
        parts: Number of channels and of entries per row, for every part of the anchor.
    """
    channels = [count for count, _ in parts]
    gauge, gamma, length, sign = (
        tensor.split_with_sizes(channels) if len(channels) > 1 else (tensor,)
        for tensor in (responses.gauge, responses.gamma, responses.length.detach(), bits)
    )
    sums = []
    for index, (_, entries) in enumerate(parts):
        reach = reach_of(margin, entries)
        missing = torch.relu(reach - gauge[index].abs())
        missing = missing + torch.relu(reach - sign[index] * gamma[index])
        sums.append(torch.dot(length[index].square() / math.sqrt(entries), missing))
    return torch.stack(sums).sum() if len(sums) > 1 else sums[0]


def reach_of(margin: float, entries: int) -> float:
    """The margin of a row: for short ones a quarter of what its response can be at most."""
    return min(margin, math.sqrt(entries) / 4)


def _joined(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    return torch.cat(list(parts), dim) if len(parts) > 1 else parts[0]


def _products(rows: Tensor, vectors: Tensor) -> Tensor:
    vectors = vectors.to(rows.dtype)
    if vectors.dim() == 2:
        # Twice as fast as ``rows @ vectors`` for a few vectors and rows far apart in memory.
        return torch.nn.functional.linear(vectors.t(), rows).t()
    grouped = rows.reshape(vectors.shape[0], -1, rows.shape[1])
    return torch.bmm(grouped, vectors).flatten(0, 1)
