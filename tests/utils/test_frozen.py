"""A model is put back whatever a forward pass did to its tensors: values, sizes, sparse ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from passportize.utils.frozen import frozen_model

pytestmark = pytest.mark.filterwarnings("ignore:Sparse", "ignore:.*quantize_per")


class Holder(nn.Module):
    """One buffer, and what the forward pass does to it."""

    def __init__(self, buffer: Tensor, change: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.register_buffer("kept", buffer)
        self.change = change

    def forward(self) -> None:
        self.change(self.kept)


def _dense() -> Tensor:
    return torch.arange(12.0).reshape(3, 4)


def _swap(tensor: Tensor) -> None:
    tensor.data = torch.zeros(2)


BUFFERS: dict[str, Callable[[], Tensor]] = {
    "dense": _dense,
    "turned": lambda: _dense().t(),
    "empty": lambda: torch.empty(0),
    "inside another": lambda: _dense()[1:],
    "coo": lambda: _dense().to_sparse(),
    "csr": lambda: _dense().to_sparse_csr(),
    "csc": lambda: _dense().to_sparse_csc(),
    "meta": lambda: _dense().to("meta"),
}
CHANGES: dict[str, Callable[[Tensor], object]] = {
    "nothing": lambda tensor: None,
    "values": lambda tensor: tensor.mul_(3),
    "grown": lambda tensor: tensor.resize_(7, 5).fill_(9.0),
    "shrunk": lambda tensor: tensor.resize_(1).fill_(9.0),
    "turned": lambda tensor: tensor.t_() if tensor.dim() == 2 else None,
    "swapped": _swap,
}
SPARSE = {"coo", "csr", "csc"}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", BUFFERS)
def test_buffers(name: str, change: str) -> None:
    if name in SPARSE and change not in ("nothing", "values"):
        pytest.skip("torch resizes no sparse tensor so")
    if (name, change) == ("meta", "swapped"):
        pytest.skip("torch swaps no tensor of another device in")
    holder = Holder(BUFFERS[name](), CHANGES[change])
    buffer, expected = holder.kept, BUFFERS[name]()
    with frozen_model(holder, values=True):
        holder()
    assert holder.kept is buffer
    assert buffer.shape == expected.shape and buffer.layout == expected.layout
    if name not in SPARSE:
        assert buffer.stride() == expected.stride()
    if name != "meta":
        assert torch.equal(buffer.to_dense(), expected.to_dense())


def test_quantised_buffers_are_left_alone() -> None:
    scales, points = torch.ones(3), torch.zeros(3)
    quantised = torch.quantize_per_channel(_dense(), scales, points, 0, torch.quint8)
    holder = Holder(quantised, lambda tensor: tensor.dequantize())
    with frozen_model(holder, values=True):
        holder()
    assert torch.equal(holder.kept.dequantize(), _dense())
