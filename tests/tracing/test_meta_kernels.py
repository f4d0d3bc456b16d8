"""Shapes of layers that have no kernel on the meta device."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from passportize.tracing.meta_kernels import leaf_output, quick_output
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


LAYERS = {
    "plain": (nn.Conv2d(3, 6, 3), (2, 3, 9, 11)),
    "strided": (nn.Conv2d(4, 6, (3, 5), 2, (1, 0), (2, 1), groups=2), (2, 4, 12, 11)),
    "same": (nn.Conv2d(3, 6, 3, padding="same"), (2, 3, 9, 11)),
    "circular": (nn.Conv2d(3, 6, 3, padding=1, padding_mode="circular"), (2, 3, 9, 11)),
    "one sample": (nn.Conv2d(3, 6, 3), (3, 9, 11)),
    "sequence": (nn.Conv1d(3, 6, 3, 2), (2, 3, 10)),
    "volume": (nn.Conv3d(3, 6, 2), (2, 3, 4, 5, 6)),
    "normed": (nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 6, 3)), (2, 3, 10)),
    "transposed": (nn.ConvTranspose2d(3, 6, 3, 2), (2, 3, 4, 5)),
}


@pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("last", [False, True])
def test_convolutions_give_what_torch_says(
    layer: nn.Module, shape: tuple[int, ...], last: bool
) -> None:
    x = torch.empty(shape, device="meta")
    if last and x.dim() == 4:
        x = x.to(memory_format=torch.channels_last)
    layer = layer.to("meta")
    expected, ours = layer(x), leaf_output(layer, "weight", x, (x,), {})
    assert (ours.shape, ours.dtype, ours.stride()) == (
        expected.shape,
        expected.dtype,
        expected.stride(),
    )


@pytest.mark.parametrize("shape", [(2, 4, 9, 9), (2, 3, 2, 2)])
def test_convolutions_that_do_not_fit_are_refused_by_torch(shape: tuple[int, ...]) -> None:
    x = torch.empty(shape, device="meta")
    with pytest.raises(RuntimeError):
        leaf_output(nn.Conv2d(3, 6, 3, device="meta"), "weight", x, (x,), {})


def sizes(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.empty(shape, dtype=dtype, device="meta") for shape in shapes]


@pytest.mark.parametrize(
    ("tensors", "dim"),
    [
        (sizes((2, 3, 4), (2, 5, 4), (2, 1, 4)), 1),
        (sizes((2, 3), (2, 5)), -1),
        (sizes((2, 3)), 0),
        (sizes((2, 3)) + sizes((1, 3), dtype=torch.float64), 0),
        (sizes((0,), (2, 3)), 1),
        ([*sizes((4, 2, 3)), sizes((4, 3, 2))[0].mT], 2),
        ([tensor.to(memory_format=torch.channels_last) for tensor in sizes((2, 3, 4, 4)) * 2], 1),
    ],
)
def test_joined_tensors_are_those_of_torch(tensors: list[Tensor], dim: int) -> None:
    expected, ours = torch.cat(tensors, dim), quick_output("cat", (tensors, dim), {})
    assert ours is None or (ours.shape, ours.dtype, ours.stride()) == (
        expected.shape,
        expected.dtype,
        expected.stride(),
    )
    named = quick_output("cat", (), {"tensors": tensors, "dim": dim})
    assert (named is None) == (ours is None)


@pytest.mark.parametrize("dim", [0, 2, -3, "x"])
def test_what_does_not_join_is_left_to_torch(dim: object) -> None:
    assert quick_output("cat", (sizes((2, 3), (2, 4)), dim), {}) is None
    assert quick_output("cat", (sizes((2, 3), (2, 3)), 0), {"out": None}) is None
