"""The step counter of a model that trains in turns, as a part of its state dict."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from passportize.switch import Switch

__all__ = ["StepCounter"]


class StepCounter(nn.Module):
    """Submodule ``counter`` of the first private branch, where ``switch.counts``.

    With it a resumed training knows when the next sign loss and the next private pass are due,
    whatever script wrote the checkpoint. It is no buffer, so DDP does not send it round, and
    what counts stays a Python number that nobody has to fetch from a GPU.

    Args:
        switch: The state that holds the number of joint steps.
    """

    def __init__(self, switch: Switch) -> None:
        super().__init__()
        self.switch = switch

    def get_extra_state(self) -> Tensor:
        """Joint steps begun so far, int64 ``[]``."""
        return torch.tensor(self.switch.step)

    def set_extra_state(self, state: Tensor) -> None:
        """Go on from there."""
        self.switch.step = int(state)
