"""Norms of third-party models, whose forward calls the functional norms or spells them out."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import passportize as pp
from passportize.layers.derived import MadeOnDemand
from passportize.layers.registry import registered_norms
from passportize.layers.unregistered_norm import structural_adapter
from passportize.signature.site import Role
from tests.support.round_trip import (
    assert_failure_leaves_no_trace,
    assert_round_trip,
    assert_same_bits,
)

PASSPORT = pp.Passport.generate(owner="third party", date="2026-11-28", secret=bytes(range(32)))
CHANNELS = 16


class LayerNormFirst(nn.Module):
    """As in the first ConvNeXt and SAM: written out, over the channels of an image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class FunctionalLayerNorm(nn.Module):
    """F.layer_norm, with factors under other names."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))
        self.register_buffer("beta", None)

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(1, -1)
        return F.layer_norm(x, x.shape[-1:], self.gamma, self.beta).movedim(-1, 1)


class FunctionalBatchNorm(nn.Module):
    """F.batch_norm with statistics of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training
        )


class FunctionalGroupNorm(nn.Module):
    """F.group_norm, laid out for broadcasting."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, 4) * self.weight + self.bias


class FunctionalInstanceNorm(nn.Module):
    """F.instance_norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.instance_norm(x, weight=self.scale, bias=self.shift)


class LlamaRMSNorm(nn.Module):
    """As language models write it, with its epsilon and a cast."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.variance_epsilon = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(1, -1).float()
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return (self.weight * x).movedim(-1, 1)


class TwiceBatchNorm2d(nn.BatchNorm2d):
    """A subclass that does something after its parent: must not be swapped as the parent."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


THIRD_PARTY = [
    LayerNormFirst,
    FunctionalLayerNorm,
    FunctionalBatchNorm,
    FunctionalGroupNorm,
    FunctionalInstanceNorm,
    LlamaRMSNorm,
    TwiceBatchNorm2d,
]


def model_with(norm: type[nn.Module]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, CHANNELS, 3),
        norm(CHANNELS),
        nn.ReLU(inplace=True),
        nn.Conv2d(CHANNELS, CHANNELS, 3),
        norm(CHANNELS),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(CHANNELS, 4),
    )
    return model, torch.randn(4, 3, 8, 8)


@pytest.mark.parametrize("preset", ["keyed", "paper", "signature"])
@pytest.mark.parametrize("norm", THIRD_PARTY)
def test_round_trip(norm: type[nn.Module], preset: str) -> None:
    model, x = model_with(norm)
    config = getattr(pp.PassportConfig, preset)()
    layers = assert_round_trip(model, PASSPORT, x, config=config)
    assert len(layers) == 2
    assert norm not in registered_norms()


@pytest.mark.parametrize("norm", THIRD_PARTY)
def test_each_is_bound_to_the_conv_before_it(norm: type[nn.Module]) -> None:
    model, x = model_with(norm)
    sites = pp.plan(model, example_inputs=x).sites
    assert [site.role for site in sites] == [Role.BOUND] * 2
    assert [site.anchor.parts[0].weight for site in sites] == ["0.weight", "3.weight"]
    assert [site.channels for site in sites] == [CHANNELS] * 2


@pytest.mark.parametrize("norm", THIRD_PARTY)
def test_rows_are_kept_apart_in_joint_training(norm: type[nn.Module]) -> None:
    plain, x = model_with(norm)
    model = pp.passportize(copy.deepcopy(plain), PASSPORT, example_inputs=x)
    plain.train(), model.train()
    expected = plain(x)
    loss = pp.joint_loss(model, x, torch.arange(4), F.cross_entropy)
    torch.testing.assert_close(loss.output, expected)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(dict(model.named_buffers())[name], buffer)


def test_copies_and_files(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = model_with(LayerNormFirst)
    assert_failure_leaves_no_trace(model, PASSPORT, monkeypatch, example_inputs=x)
    pp.passportize(model, PASSPORT, example_inputs=x)
    twin = copy.deepcopy(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (twin, loaded):
        assert isinstance(other[1], MadeOnDemand) and type(other[1]) is type(model[1])
        assert_same_bits(model(x), other(x), "copy")
        pp.unpassportize(other)
        assert type(other[1]) is LayerNormFirst


class FrozenBatchNorm2d(nn.Module):
    """As detection libraries have it: everything is a buffer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


def test_frozen_norms_of_other_libraries() -> None:
    model, x = model_with(FrozenBatchNorm2d)
    planned = pp.plan(model, example_inputs=x)
    assert [site.role for site in planned.sites] == [Role.SKIPPED] * 2
    assert "include_frozen=True" in planned.sites[0].reason
    assert len(assert_round_trip(model, PASSPORT, x, include_frozen=True)) == 2


class TwoFactorsNorm(nn.Module):
    """Owns more than a scale and a shift: nobody can say which one to replace."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(CHANNELS))
        self.extra = nn.Parameter(torch.ones(CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.weight * self.extra)[:, None, None]


class ScaleNorm(nn.Module):
    """One number for all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.normalize(x, dim=1)


@pytest.mark.parametrize("norm", [TwoFactorsNorm, ScaleNorm])
def test_what_says_too_little_is_named_in_the_plan(norm: type[nn.Module]) -> None:
    assert structural_adapter(norm()) is None
    model = nn.Sequential(
        nn.Conv2d(3, CHANNELS, 3), norm(), nn.Conv2d(CHANNELS, 8, 3), nn.BatchNorm2d(8)
    )
    planned = pp.plan(model, example_inputs=torch.randn(2, 3, 8, 8))
    assert [site.role for site in planned.sites] == [Role.SKIPPED, Role.BOUND]
    assert "register_adapter" in planned.sites[0].reason


def test_a_forward_set_on_the_instance_is_not_passed_over() -> None:
    norm = LayerNormFirst(4)
    norm.forward = lambda x: x  # type: ignore[method-assign]
    assert structural_adapter(norm) is None
