"""Moments of what weights are multiplied with, against inputs taken apart by hand."""

from __future__ import annotations

import copy

import pytest
import timm.layers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from passportize.tracing.layer_inputs import InputMoments, Moments, ReachedLast, observed


def watched(model: nn.Module, names: list[str], *inputs: Tensor) -> InputMoments:
    owners = {name: model.get_submodule(name.rpartition(".")[0]) for name in names}
    weights = {name: model.get_parameter(name) for name in names}
    module_of = {name: owners[name] for name in names}
    blocks = {
        name: slice(0, weight[0].numel()) for name, weight in weights.items() if module_of[name]
    }
    model.eval()
    with torch.no_grad(), observed(owners, weights, blocks) as mode:
        for each in inputs:
            model(each)
    return mode


def check(moments: Moments, rows: Tensor) -> None:
    """``rows``: ``[groups, inputs, entries]``."""
    rows = rows.double()
    assert moments.count == rows.shape[1]
    torch.testing.assert_close(moments.mean(), rows.mean(1), rtol=1e-4, atol=1e-5)
    for group, own in enumerate(rows):
        torch.testing.assert_close(
            moments.moment(False, group), own.T @ own / len(own), rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(
            moments.moment(True, group), torch.cov(own.T, correction=0), rtol=1e-3, atol=1e-4
        )


CONVOLUTIONS = {
    "plain": nn.Conv2d(4, 6, 3),
    "strided": nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), bias=False),
    "dilated": nn.Conv2d(4, 6, 3, dilation=2, padding=2),
    "grouped": nn.Conv2d(4, 6, 3, groups=2),
    "depthwise": nn.Conv2d(4, 8, 3, groups=4, padding=1),
    "same": nn.Conv2d(4, 6, 3, padding="same"),
    "pointwise": nn.Conv2d(4, 6, 1),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolutions(kind: str) -> None:
    torch.manual_seed(0)
    layer = CONVOLUTIONS[kind]
    model, x = nn.Sequential(layer), torch.randn(3, 4, 9, 8)
    mode = watched(model, ["0.weight"], x)
    padding = (1, 1) if layer.padding == "same" else layer.padding
    pieces = F.unfold(x, layer.kernel_size, layer.dilation, padding, layer.stride)
    rows = pieces.transpose(1, 2).flatten(0, 1).view(-1, layer.groups, layer.weight[0].numel())
    check(mode.moments["0.weight"], rows.transpose(0, 1))


@pytest.mark.parametrize(("layer", "shape"), [(nn.Conv1d, (9,)), (nn.Conv3d, (5, 4, 6))])
def test_other_numbers_of_axes(layer: type[nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(layer(3, 5, 2, stride=2, padding=1)), torch.randn(2, 3, *shape)
    mode = watched(model, ["0.weight"], x)
    moments, weight = mode.moments["0.weight"], model[0].weight
    # The mean of the outputs is the product with the mean of the inputs.
    outputs = model(x).detach().transpose(0, 1).flatten(1).mean(1)
    flat = weight.detach().flatten(1).double()
    expected = flat @ moments.mean()[0] + model[0].bias.detach().double()
    torch.testing.assert_close(outputs.double(), expected, rtol=1e-4, atol=1e-5)


def test_linear_layers_on_any_number_of_axes() -> None:
    torch.manual_seed(0)
    for bias in (True, False):
        model = nn.Sequential(nn.Linear(5, 7, bias=bias))
        for shape in [(6, 5), (2, 3, 5), (2, 2, 3, 5)]:
            x = torch.randn(shape)
            mode = watched(model, ["0.weight"], x)
            check(mode.moments["0.weight"], x.reshape(1, -1, 5))


class Twice(nn.Module):
    """A layer that is used twice, another once in between, by function calls."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(5, 5)
        self.two = nn.Linear(5, 5)
        self.unused = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(x, self.one.weight)
        return self.one(self.two(x))


def test_every_use_counts_and_the_order_is_that_of_the_last() -> None:
    model, x = Twice(), torch.randn(6, 5)
    mode = watched(model, ["one.weight", "two.weight", "unused.weight"], x)
    assert mode.uses == {"two.weight": 1, "one.weight": 2}
    assert mode.moments["one.weight"].count == 12 and mode.moments["two.weight"].count == 6


def test_a_pass_can_stop_at_the_last() -> None:
    model, x = Twice().eval(), torch.randn(6, 5)
    owners, weights = {"two.weight": model.two}, {"two.weight": model.two.weight}
    with torch.no_grad(), observed(owners, weights, {"two.weight": slice(1, 4)}) as mode:
        mode.stop_after = ("two.weight", 1)
        with pytest.raises(ReachedLast):
            model(x)
    assert mode.moments["two.weight"].second.shape == (1, 3, 3)
    assert not model.two._forward_hooks and not model.two._forward_pre_hooks


def test_attention() -> None:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    names = ["self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight"]
    x = torch.randn(3, 4, 8)
    before = copy.deepcopy(encoder.state_dict())
    mode = watched(encoder, names, x)
    check(mode.moments["self_attn.in_proj_weight"], x.reshape(1, -1, 8))
    assert set(mode.moments) == set(names)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("layer", ["StdConv2dSame", "ScaledStdConv2d", "Conv2dSame"])
def test_layers_that_pad_or_standardise(layer: str) -> None:
    torch.manual_seed(0)
    module = getattr(timm.layers, layer)
    options = {} if layer == "Conv2dSame" else {"padding": 1} if "Scaled" in layer else {}
    model = nn.Sequential(module(3, 8, 3, stride=2, bias=False, **options))
    x = torch.randn(2, 3, 9, 9)
    mode = watched(model, ["0.weight"], x)
    pieces = F.unfold(x, 3, padding=1, stride=2).transpose(1, 2).flatten(0, 1)
    check(mode.moments["0.weight"], pieces[None])


def test_large_inputs_are_thinned_evenly() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(2000, 4)), torch.randn(9000, 2000)
    mode = watched(model, ["0.weight"], x)
    assert 3000 < mode.moments["0.weight"].count <= 5000


def test_which_inputs_are_looked_at_is_the_rule_of_the_claim_format() -> None:
    """With integers alone, as docs/claim_format.md has it; sums of what is there are the check."""
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 4, 3, bias=False)
    x = torch.randn(3, 2, 52, 50)
    mode = watched(nn.Sequential(layer), ["0.weight"], x)
    pieces = F.unfold(x, 3).permute(0, 2, 1).reshape(-1, 18).double()
    count, entries = len(pieces), 18
    most = max(4096, min(64 * entries, 20_000_000_000 // entries**2))
    assert count == 3 * 50 * 48 and most == 4096
    step = 618 * count // 1000
    while any(count % n == 0 and step % n == 0 for n in range(2, step + 1)):
        step += 1
    places = sorted(i * step % count for i in range(most))
    assert len(set(places)) == most
    found = mode.moments["0.weight"]
    assert found.count == most
    chosen = pieces[places]
    torch.testing.assert_close(found.moment(False), chosen.T @ chosen / most, rtol=1e-5, atol=1e-6)
    # Every column of the image has its share.
    columns = torch.tensor(places) % 48
    shares = columns.bincount(minlength=48) / most
    assert float(shares.max()) < 1.1 / 48 and float(shares.min()) > 0.9 / 48
