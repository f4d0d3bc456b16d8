"""Shapes of layers that have no kernel on the meta device."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from passportize.tracing.trace import trace_model

pytestmark = pytest.mark.usefixtures("nothing_patched")


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("options", [{}, {"batch_first": True, "bidirectional": True}])
def test_recurrent_layers_have_the_shapes_of_torch(
    kind: type[nn.RNNBase], options: dict[str, bool]
) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = kind(3, 5, 2, **options)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            out, state = self.rnn(x)
            return out, *(state if isinstance(state, tuple) else (state,))

    model, x = Model(), torch.zeros(4, 6, 3)
    trace = trace_model(model, x)
    shapes = [n.meta["shape"] for n in trace.recordings[0].graph.nodes if "shape" in n.meta]
    for tensor in model(x):
        assert tuple(tensor.shape) in shapes
