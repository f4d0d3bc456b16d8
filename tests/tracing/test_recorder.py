"""What the recorder answers to a forward that looks at shapes and values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passportize.tracing.trace import trace_model
from tests.support.traced import Pooling

pytestmark = pytest.mark.usefixtures("nothing_patched")


class ShapeReader(nn.Module):
    """Branches on everything that a shape can tell."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv1d(3, 8, 1)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x: Tensor, scale: float | None = None, names: str = "a") -> Tensor:
        batch, _channels, points = list(x.shape)
        if x.is_cuda or len(x) != batch or x.ndim != 3 or x.dim() > 3:
            raise AssertionError
        if x.shape[1] > 3:
            x, _ = x.split([3, x.size(1) - 3], dim=1)
        index = torch.arange(points, device=x.device)
        assert int(index.max()) == points - 1
        eye = torch.eye(3, device=x.device).repeat(batch, 1, 1)
        x = torch.bmm(eye, x)[:, :, index]
        x = F.pad(x, (0, (4 - points % 4) % 4))
        x = self.norm(self.proj(x))
        x = x.to(torch.float64).to(self.proj.weight.dtype).cpu()
        out = torch.zeros(batch, 8)
        out[:, :] = x.amax(-1)
        if scale is not None:
            out = out * scale
        return out.view(int(x.size(0)), -1)


@pytest.mark.parametrize("width", [3, 6])
def test_sizes_are_concrete(width: int) -> None:
    trace = trace_model(ShapeReader(), torch.empty(2, width, 10, device="meta"), norms={"norm"})
    assert trace.complete, trace.reason
    assert trace.method == "fx-meta"
    last = list(trace.recordings[0].graph.nodes)[-1]
    assert last.meta["shape"] == (2, 8)


@pytest.mark.parametrize("as_keywords", [False, True])
def test_real_inputs_keep_their_values(as_keywords: bool) -> None:
    x, batch = torch.randn(5, 3), torch.tensor([0, 0, 1, 2, 2])
    inputs = {"x": x, "batch": batch} if as_keywords else (x, batch)
    trace = trace_model(Pooling(), inputs, norms={"norm"})
    assert trace.complete, trace.reason
    nodes = list(trace.recordings[0].graph.nodes)
    assert nodes[-1].meta["shape"] == (3, 6)
