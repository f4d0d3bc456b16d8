"""A word where weights that are about to go out do not carry the signature."""

from __future__ import annotations

import warnings

from torch import nn

from passportize.layers.layer import PassportLayer

__all__ = ["FEWEST_BITS", "MissingBitsWarning", "warn_of_missing_bits"]

FEWEST_BITS = 0.9
"""Share of the signature bits that trained weights carry at least; half of them by chance."""


class MissingBitsWarning(UserWarning):
    """The weights do not carry the signature that is to be found in them later."""


def warn_of_missing_bits(model: nn.Module, stacklevel: int) -> None:
    """Say it if too few bits are in the weights of a passportized model; nothing if it is locked.

    Args:
        model: The model.
        stacklevel: Of the one who called, as for :func:`warnings.warn`.

    Warns:
        MissingBitsWarning: Fewer than :data:`FEWEST_BITS` of them are in.
    """
    branches = [m.passport for m in model.modules() if isinstance(m, PassportLayer)]
    bound = [branch for branch in branches if branch.bound]
    if any(branch.secret.locked or branch.weights is None for branch in bound):
        return
    if any(row.is_meta for branch in bound if branch.weights for row in branch.weights.rows()):
        return
    total = sum(branch.site.bits for branch in bound)
    matched = sum(branch.matched() for branch in bound)
    if matched < FEWEST_BITS * total:
        warnings.warn(
            f"{type(model).__name__}: only {matched} of the {total} signature bits are in the "
            "weights (half of them are by chance), so the signature will not be found in what is "
            "released; put them in with embed_signature(model) before training, and train with "
            "joint_loss, whose sign loss keeps them there",
            MissingBitsWarning,
            stacklevel=stacklevel + 1,
        )
