from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import conv1d, conv2d, conv3d

from passportize.errors import InvalidArgument
from passportize.passport.mean_patch import averaged_response, mean_patch, mean_patch_of

CONVOLUTIONS = {1: (nn.Conv1d, conv1d), 2: (nn.Conv2d, conv2d), 3: (nn.Conv3d, conv3d)}


def per_axis(draw, axes, low, high):
    return tuple(draw(st.integers(low, high)) for _ in range(axes))


@st.composite
def convolutions(draw):
    axes = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 3))
    settings_ = {
        "kernel_size": per_axis(draw, axes, 1, 4),
        "dilation": per_axis(draw, axes, 1, 3),
        "groups": groups,
        "padding_mode": draw(st.sampled_from(["zeros", "circular", "reflect", "replicate"])),
        "padding": draw(st.sampled_from(["numbers", "same", "valid"])),
    }
    settings_["stride"] = per_axis(draw, axes, 1, 1 if settings_["padding"] == "same" else 4)
    if settings_["padding"] == "numbers":
        settings_["padding"] = per_axis(draw, axes, 0, 3)
    channels_in = groups * draw(st.integers(1, 3))
    channels_out = groups * draw(st.integers(1, 3))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    layer = CONVOLUTIONS[axes][0](channels_in, channels_out, bias=False, **settings_).double()
    shape = (channels_in, *per_axis(draw, axes, 4, 9))
    if draw(st.booleans()):
        shape = (draw(st.integers(1, 3)), *shape)
    return layer, torch.rand(shape, dtype=torch.float64) * 2 - 1


def average(responses, axes):
    over = [axis for axis in range(responses.dim()) if axis != responses.dim() - axes - 1]
    return responses.mean(over)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@settings(max_examples=300, deadline=None)
@given(convolutions())
def test_mean_patch_equals_convolve_then_average(case):
    layer, passport = case
    try:
        expected = average(layer(passport), len(layer.kernel_size))
    except RuntimeError:
        # torch refuses: kernel larger than the input, padding wider than the passport.
        with pytest.raises(InvalidArgument):
            mean_patch_of(layer, passport)
        return
    patches = mean_patch_of(layer, passport)
    assert patches.shape == (layer.groups, layer.weight[0].numel())
    torch.testing.assert_close(
        averaged_response(layer.weight, patches), expected, rtol=0, atol=1e-12
    )


@settings(max_examples=60, deadline=None)
@given(convolutions(), st.data())
def test_functional_convolution_agrees(case, data):
    layer, passport = case
    axes = len(layer.kernel_size)
    assume(layer.padding_mode == "zeros")
    options = {
        "stride": data.draw(st.integers(1, 3)),
        "padding": data.draw(st.integers(0, 3)),
        "dilation": data.draw(st.integers(1, 2)),
        "groups": layer.groups,
    }
    try:
        expected = average(CONVOLUTIONS[axes][1](passport, layer.weight, **options), axes)
    except RuntimeError:
        assume(False)
    patches = mean_patch(passport, layer.weight.shape, **options)
    torch.testing.assert_close(
        averaged_response(layer.weight, patches), expected, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 5, 6)])
def test_linear_averages_over_tokens(shape):
    torch.manual_seed(0)
    layer = nn.Linear(6, 4, bias=False).double()
    passport = torch.randn(shape, dtype=torch.float64)
    expected = layer(passport).reshape(-1, 4).mean(0)
    response = averaged_response(layer.weight, mean_patch_of(layer, passport))
    torch.testing.assert_close(response, expected, rtol=0, atol=1e-12)


def test_float32_is_summed_in_float64():
    torch.manual_seed(0)
    passport = torch.rand(3, 224, 224) + 1000
    patches = mean_patch(passport, (8, 3, 7, 7), stride=2, padding=3)
    exact = mean_patch(passport.double(), (8, 3, 7, 7), stride=2, padding=3)
    assert patches.dtype == torch.float32
    assert torch.equal(patches, exact.float())


def test_integer_passports_become_float32():
    passport = torch.arange(75, dtype=torch.uint8).reshape(3, 5, 5)
    patches = mean_patch(passport, (4, 3, 3, 3))
    assert torch.equal(patches, mean_patch(passport.float(), (4, 3, 3, 3)))


def test_response_is_differentiable():
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False).double()
    passport = torch.randn(4, 5, 5, dtype=torch.float64)
    (expected,) = torch.autograd.grad(layer(passport).mean((1, 2)).square().sum(), layer.weight)
    response = averaged_response(layer.weight, mean_patch_of(layer, passport))
    (gradient,) = torch.autograd.grad(response.square().sum(), layer.weight)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


class PadsOnTheFly(nn.Conv2d):
    def forward(self, input):
        return super().forward(nn.functional.pad(input, (0, 1, 0, 1)))


@pytest.mark.parametrize(
    "layer", [nn.ConvTranspose2d(3, 4, 3), PadsOnTheFly(3, 4, 3), nn.BatchNorm2d(3)]
)
def test_other_layers_are_refused(layer):
    with pytest.raises(InvalidArgument, match=type(layer).__name__):
        mean_patch_of(layer, torch.rand(3, 8, 8))


@pytest.mark.parametrize(
    ("shape", "weight_shape", "options"),
    [
        ((3, 8, 8), (4,), {}),
        ((8, 8), (4, 3, 3, 3), {}),
        ((1, 1, 3, 8, 8), (4, 3, 3, 3), {}),
        ((4, 8, 8), (4, 3, 3, 3), {}),
        ((0, 3, 8, 8), (4, 3, 3, 3), {}),
        ((3, 2, 2), (4, 3, 3, 3), {}),
        ((3, 8, 8), (4, 3, 3, 3), {"stride": 0}),
        ((3, 8, 8), (4, 3, 3, 3), {"stride": (1, 1, 1)}),
        ((3, 8, 8), (4, 3, 3, 3), {"padding": -1}),
        ((3, 8, 8), (4, 3, 3, 3), {"padding": "full"}),
        ((3, 8, 8), (4, 3, 3, 3), {"dilation": 1.5}),
        ((3, 8, 8), (4, 3, 3, 3), {"groups": 0}),
        ((3, 8, 8), (4, 3, 3, 3), {"padding_mode": "wrap"}),
        ((3, 8, 8), (4, 3, 3, 3), {"padding": 9, "padding_mode": "circular"}),
        ((7,), (4, 3), {}),
    ],
)
def test_what_does_not_fit_is_refused(shape, weight_shape, options):
    with pytest.raises(InvalidArgument):
        mean_patch(torch.rand(shape), weight_shape, **options)


@pytest.mark.parametrize("passport", [None, [[1.0]], torch.zeros(3, 8, 8, dtype=torch.complex64)])
def test_only_real_tensors_are_taken(passport):
    with pytest.raises(InvalidArgument):
        mean_patch(passport, (4, 3, 3, 3))


@pytest.mark.parametrize("patches", [torch.ones(3, 9), torch.ones(1, 8), torch.ones(9)])
def test_foreign_patches_are_refused(patches):
    with pytest.raises(InvalidArgument):
        averaged_response(torch.ones(4, 1, 3, 3), patches)
