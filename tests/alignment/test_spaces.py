"""Where a whole matrix may act on channels, and where only permutations may."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from passportize.alignment.spaces import MatrixKind, MatrixSpace
from passportize.alignment.tied_channels import TiedChannels, find_tied_channels
from tests.support.disguised import Attention, Bottlenecks, Stream


def spaces_of(model: nn.Module, x: Tensor) -> list[MatrixSpace]:
    return list(find_tied_channels(model.eval(), x).spaces)


def tensors_of(tied: TiedChannels, space: MatrixSpace) -> set[tuple[str, bool]]:
    return {(tied.axes[side.axis].tensor, side.writes) for side in space.sides}


@pytest.mark.parametrize(
    ("norm", "kind"),
    [(nn.LayerNorm, MatrixKind.CENTRED), (nn.RMSNorm, MatrixKind.ORTHOGONAL)],
)
def test_a_residual_stream(norm: type[nn.Module], kind: MatrixKind) -> None:
    model, x = Stream(norm), torch.randn(2, 5, 6)
    tied = find_tied_channels(model.eval(), x)
    streams = [space for space in tied.spaces if space.group is not None]
    assert [(space.kind, space.size, space.blocks) for space in streams] == [(kind, 12, 1)]
    sides = tensors_of(tied, streams[0])
    assert {("inward.weight", True), ("places", True), ("blocks.0.second.weight", True)} <= sides
    assert {("blocks.0.first.weight", False), ("head.weight", False)} <= sides
    # Hidden units see an activation each, so they can be permuted and no more.
    assert not any("first.weight" in name and writes for name, writes in sides)


def test_factors_of_norms_and_layer_scale_are_folded_or_stop_a_matrix() -> None:
    model, x = Stream(nn.LayerNorm, scale=True), torch.randn(2, 5, 6)
    (stream,) = [space for space in spaces_of(model, x) if space.group is not None]
    assert sorted(d.kind for d in stream.diagonals) == ["factor", "factor", "norm", "norm", "norm"]


def test_linear_bottlenecks_take_any_matrix_until_something_acts_on_channels() -> None:
    x = torch.randn(2, 3, 8, 8)
    linear = spaces_of(Bottlenecks(nn.Identity()), x)
    assert [(space.kind, space.size) for space in linear] == [(MatrixKind.LINEAR, 6)]
    assert {d.kind for d in linear[0].diagonals} == {"statistics"}
    for step in (nn.ReLU(), nn.Tanh(), nn.MaxPool2d(3, 1, 1), nn.GroupNorm(2, 6)):
        assert spaces_of(Bottlenecks(step), x) == []
    # A mean over positions and dropout are the same to every mixture of channels.
    for step in (nn.AvgPool2d(3, 1, 1), nn.Dropout(0.5)):
        assert len(spaces_of(Bottlenecks(step), x)) == 1


@pytest.mark.parametrize("fused", [True, False])
def test_heads_of_attention(fused: bool) -> None:
    model, x = Attention(fused), torch.randn(2, 5, 6)
    tied = find_tied_channels(model.eval(), x)
    heads = [space for space in tied.spaces if space.group is None]
    assert [(space.kind, space.size, space.blocks) for space in heads] == [
        (MatrixKind.LINEAR, 4, 3)
    ] * 2
    keys, values = heads
    assert {("qkv.weight", True), ("qkv.weight", False)} <= tensors_of(tied, keys)
    assert {("qkv.weight", True), ("out.weight", False)} <= tensors_of(tied, values)
    # Heads can change places as well: queries, keys and values of one together.
    assert any(group.size == 3 for group in tied.groups)


def test_a_table_for_each_head_keeps_heads_in_their_places() -> None:
    model = timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1)).eval()
    tied = find_tied_channels(model)
    assert len([space for space in tied.spaces if space.group is None]) == 8
    assert not any(group.size in (3, 6, 12, 24) for group in tied.groups)


def test_queries_that_another_step_sees_are_left_alone() -> None:
    model, x = Attention(True, turned=True), torch.randn(2, 5, 6)
    heads = [space for space in spaces_of(model, x) if space.group is None]
    assert len(heads) == 1  # values alone


def test_convolutional_nets_have_none() -> None:
    assert find_tied_channels(timm.create_model("resnet10t").eval()).spaces == ()
