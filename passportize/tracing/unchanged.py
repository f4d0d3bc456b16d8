"""Whether a model still computes what it did, or another one what it does."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from passportize.tracing.example_inputs import given_or_random
from passportize.utils.frozen import trial
from passportize.utils.trees import tensors_in

__all__ = ["ROUNDING", "FunctionCheck"]

ROUNDING = 1e-3
"""Difference of outputs, as a share of the largest, that rounding may make."""


class FunctionCheck:
    """Outputs of a model on an example, to be compared with those after a change.

    Args:
        model: The model as it is.
        example_inputs: As in :func:`passportize.plan`; by default noise of the size that the model
            names. Where it names none, no change is seen.
    """

    def __init__(self, model: nn.Module, example_inputs: Any = None) -> None:
        self._inputs = given_or_random(model, example_inputs)
        self._before = self._outputs(model)

    def _outputs(self, model: nn.Module) -> list[Tensor]:
        if self._inputs is None:
            return []
        with trial(model):
            outputs = self._inputs.call(model.eval())
        return [tensor.to(torch.float64) for tensor in tensors_in(outputs)]

    def difference(self, model: nn.Module) -> float:
        """Largest difference of an output, as a share of the largest one; 0 where unknown.

        Infinite where the model does not run any more (something counts on an old width, or looks
        into a module that is gone).
        """
        largest = 0.0
        try:
            found = self._outputs(model)
        except (AttributeError, RuntimeError, TypeError, ValueError):
            return math.inf
        for before, after in zip(self._before, found, strict=True):
            if before.shape != after.shape:
                return math.inf
            spread = before.abs().max().clamp_min(1e-6)
            apart = float((before - after).abs().max() / spread)
            largest = max(largest, math.inf if math.isnan(apart) else apart)
        return largest

    def moved(self, model: nn.Module) -> float | None:
        """Mean square of what outputs changed by, over their variance; None where unknown.

        The variance is that over the samples, so that what all of them have in common is no part
        of it.
        """
        change = variance = 0.0
        for before, after in zip(self._before, self._outputs(model), strict=True):
            if before.shape != after.shape or before.dim() < 1:
                return None
            change += float((after - before).square().sum())
            variance += float((before - before.mean(0)).square().sum())
        found = change / variance if variance > 0 else math.nan
        return found if math.isfinite(found) else None

    def changed(self, model: nn.Module) -> bool:
        """Whether the outputs differ by more than rounding."""
        return not self.difference(model) <= ROUNDING
