"""Output shapes of modules that are slow or impossible to run on the meta device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["recurrent_output"]


def recurrent_output(module: nn.RNNBase, source: Tensor) -> tuple[Tensor, Any]:
    """Output and final state of a recurrent layer, as tensors without data.

    Args:
        module: LSTM, GRU or RNN.
        source: ``[time, batch, features]``, ``[batch, time, features]`` or ``[time, features]``.
    """
    directions = 2 if module.bidirectional else 1
    hidden = module.proj_size or module.hidden_size
    output = source.new_empty((*source.shape[:-1], directions * hidden))
    batch = source.shape[0 if module.batch_first else 1 : -1][:1] if source.dim() == 3 else ()
    layers = directions * module.num_layers
    state = source.new_empty((layers, *batch, hidden))
    if isinstance(module, nn.LSTM):
        return output, (state, source.new_empty((layers, *batch, module.hidden_size)))
    return output, torch.empty_like(state)
