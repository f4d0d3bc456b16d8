"""Where a whole matrix may act on channels, and where only permutations may."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

from passportize.alignment.alignment import align
from passportize.alignment.spaces import MatrixKind, MatrixSpace
from passportize.alignment.tied_channels import TiedChannels, find_tied_channels
from passportize.attacks.disguise import disguise
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


def test_a_table_for_each_head_goes_where_its_head_goes() -> None:
    model = timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1)).eval()
    tied = find_tied_channels(model)
    assert len([space for space in tied.spaces if space.group is None]) == 8
    heads = [group for group in tied.groups if group.size in (3, 6, 12, 24)]
    assert [group.size for group in heads] == [3, 6, 12, 24]
    for group in heads:
        names = {tied.axes[at].tensor.rpartition(".")[2] for at, _ in group.places}
        assert names == {"relative_position_bias_table", "weight", "bias"}


def test_queries_that_another_step_sees_are_left_alone() -> None:
    model, x = Attention(True, turned=True), torch.randn(2, 5, 6)
    heads = [space for space in spaces_of(model, x) if space.group is None]
    assert len(heads) == 1  # values alone


def test_convolutional_nets_have_none() -> None:
    assert find_tied_channels(timm.create_model("resnet10t").eval()).spaces == ()


class PartlySkipped(nn.Module):
    """Linear bottlenecks that grow: the skip adds to the first channels, as in ReXNet."""

    def __init__(self, grown: str) -> None:
        super().__init__()
        self.grown = grown
        self.stem = nn.Conv2d(3, 32, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(32)
        self.write = nn.Conv2d(32, 8, 1, bias=False)
        self.write_norm = nn.BatchNorm2d(8)
        self.expand = nn.Conv2d(8, 48, 1, bias=False)
        self.expand_norm = nn.BatchNorm2d(48)
        self.back = nn.Conv2d(48, 13, 1, bias=False)
        self.back_norm = nn.BatchNorm2d(13)
        self.last = nn.Conv2d(13, 64, 1, bias=False)
        self.last_norm = nn.BatchNorm2d(64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.write_norm(self.write(torch.relu(self.stem_norm(self.stem(x)))))
        y = self.back_norm(self.back(torch.relu(self.expand_norm(self.expand(x)))))
        if self.grown == "concatenated":
            y = torch.cat((y[:, :8] + x, y[:, 8:]), 1)
        else:  # two spaces behind one norm
            first, second = y.split((8, 5), 1)
            y = torch.cat((second, first + x), 1)
        return self.head(torch.relu(self.last_norm(self.last(y))).mean((2, 3)))


@pytest.mark.parametrize("grown", ["concatenated", "exchanged"])
def test_a_norm_may_have_channels_of_two_spaces(grown: str) -> None:
    torch.manual_seed(0)
    released, x = PartlySkipped(grown), torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        for module in released.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.3, 2.0)
                module.bias.normal_()
                module.running_mean.normal_()  # type: ignore[union-attr]
                module.running_var.uniform_(0.2, 5.0)  # type: ignore[union-attr]
    tied = find_tied_channels(released.eval(), x)
    assert sorted(space.size for space in tied.spaces) == [5, 8]
    assert all(
        len(diagonal.before) == space.size for space in tied.spaces for diagonal in space.diagonals
    )
    suspect = copy.deepcopy(released)
    done = disguise(suspect, torch.Generator().manual_seed(1), example_inputs=x)
    assert done.mixed == 13
    with torch.no_grad():
        torch.testing.assert_close(suspect(x), released(x), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(suspect.back.weight, released.back.weight, atol=0.1)
    aligned = align(released.state_dict(), suspect.state_dict(), tied).tensors
    for name in ("write.weight", "expand.weight", "back.weight", "last.weight"):
        own, other = released.state_dict()[name].flatten(1), aligned[name].flatten(1)
        alike = torch.nn.functional.cosine_similarity(own, other)
        assert bool((alike > 0.999).all()), (name, float(alike.min()))


def test_a_part_of_a_norm_that_does_not_lie_side_by_side_is_no_diagonal() -> None:
    (stream,) = spaces_of(Bottlenecks(nn.Identity()), torch.randn(2, 3, 8, 8))
    diagonal = stream.diagonals[0]
    count = len(diagonal.before)
    mine = torch.zeros(count, dtype=torch.bool)
    mine[[0, 2]] = True
    assert diagonal.of(mine) is None
    mine[1] = True
    part = diagonal.of(mine)
    assert part is not None and len(part.before) == 3 and part.first == diagonal.first
    assert torch.equal(part.after, diagonal.after[:3])


class ScaledBehindNorm(nn.Module):
    """A bottleneck whose branch ends in a norm with statistics and a factor for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.inward_norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.wide, self.narrow = nn.Conv2d(8, 24, 1), nn.Conv2d(24, 8, 1)
        self.norm, self.factors = nn.BatchNorm2d(8), nn.Parameter(torch.rand(8, 1, 1) + 0.5)
        self.last, self.head = nn.Conv2d(8, 16, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inward_norm(self.inward(x))
        x = x + self.norm(self.narrow(torch.relu(self.wide(x)))) * self.factors
        return self.head(torch.relu(self.last(x)).mean((2, 3)))


def test_a_factor_behind_a_norm_takes_what_the_norm_adds_along() -> None:
    torch.manual_seed(0)
    released, x = ScaledBehindNorm(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        for norm in (released.inward_norm, released.norm):
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                tensor.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    suspect = copy.deepcopy(released.eval())
    done = disguise(suspect, torch.Generator().manual_seed(1), example_inputs=x)
    assert done.mixed == 8
    with torch.no_grad():
        torch.testing.assert_close(suspect(x), released(x), atol=1e-4, rtol=1e-4)
