"""Modules that shapes alone cannot read."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from passportize.tracing.trace import trace_model
from tests.support.traced import norm_names

pytestmark = pytest.mark.usefixtures("nothing_patched")


class Numpy(nn.Module):
    """Leaves torch in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.norm = nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        return torch.from_numpy(x.detach().numpy() * 2)


def test_an_untraceable_module_becomes_a_leaf() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), Numpy(), nn.LayerNorm(16))
    trace = trace_model(model, norms=norm_names(model))
    assert trace.method == "fx-leaf"
    assert not trace.complete
    assert trace.reason.startswith("2 could not be read")
    targets = {str(n.target) for r in trace.recordings for n in r.graph.nodes}
    assert {"0", "1", "2", "3"} <= targets


def test_leaf_graphs_of_inner_modules_keep_full_names() -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.from_numpy(self.part(x).numpy())

    model = nn.Sequential(nn.Identity(), Several())
    trace = trace_model(model, norms=norm_names(model))
    targets = {str(n.target) for r in trace.recordings for n in r.graph.nodes}
    assert "1.part.1" in targets
    assert "1.part.1" in trace.called
