"""The sign loss of many rows at once, and its gradient in closed form.

It is :func:`passportize.signature.response.sign_penalty` for rows of several lengths in one block,
with its gradient written out: a step then takes a dozen operations for a whole model instead of as
many for every layer, and keeps nothing for a backward pass but the gradient itself.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Hinges", "hinge_loss"]


class Hinges(NamedTuple):
    """What the sign loss asks of every row, ``[rows]`` each, in the dtype of the responses.

    Attributes:
        bits: -1 and +1.
        reach: The margin, see :func:`~passportize.signature.response.reach_of`.
        weight: Weight of the sign loss over the root of the number of entries.
    """

    bits: Tensor
    reach: Tensor
    weight: Tensor


def hinge_loss(
    rows: Tensor,
    signs: Tensor,
    products: Tensor,
    length: Tensor,
    turn: Tensor,
    hinges: Hinges,
) -> tuple[Tensor, Tensor]:
    """``sum_c weight_c |w_c|^2 (max(0, m_c - |a_c|) + max(0, m_c - b_c u_c))`` and its gradient.

    ``|w_c|^2`` counts as a constant. Without gradient.

    Args:
        rows: ``[rows, entries]``; behind the end of a short one there are zeros.
        signs: Vectors of the rows, ``[3, rows, entries]``.
        products: Rows times vectors over lengths, ``[3, rows]``.
        length: ``[rows]``.
        turn: The sign of the gauge as ``u`` takes it, -1 or 1, ``[rows]``.
        hinges: What is asked.

    Returns:
        A scalar, and less its gradient by the rows.
    """
    # Towards which side of each vector a row is to move: that of its gauge, that of its bit.
    sides = torch.stack([torch.sign(products[0]), hinges.bits * turn])
    missing = torch.relu(hinges.reach - products[:2] * sides)
    force = hinges.weight * length
    loss = torch.dot(force * length, missing.sum(0))
    pull = torch.sign(missing) * sides
    along = hinges.weight * (pull * products[:2]).sum(0)
    gradient = torch.einsum("kc,kce->ce", pull * force, signs[:2])
    return loss, gradient.addcmul_(rows, along[:, None], value=-1)
