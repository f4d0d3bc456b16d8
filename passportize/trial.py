"""Trying a model out: forward passes that leave nothing behind, and comparing what they give."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from passportize.model_state import frozen_model, frozen_random_state

__all__ = ["close", "trial"]

_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}
_LOOSE = 5e-2


@contextmanager
def trial(model: nn.Module) -> Iterator[None]:
    """Forward passes within leave nothing behind: no value, hook, random draw or warning."""
    with (
        frozen_random_state(cuda=True),
        frozen_model(model, values=True),
        torch.no_grad(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def close(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors are the same up to what another order of summation explains."""
    if left.shape != right.shape:
        return False
    if not right.is_floating_point():
        return torch.equal(left, right)
    tolerance = _TOLERANCE.get(right.dtype, _LOOSE)
    scale = float(right.abs().max()) if right.numel() else 0.0
    return (
        bool((left - right).abs().max() <= tolerance * max(scale, 1e-3)) if right.numel() else True
    )
