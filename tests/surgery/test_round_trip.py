"""Passportize, use, restore: the model is what it was, whatever it is made of."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

import passportize as pp
from passportize.errors import AlreadyPassportized, NotPassportized
from passportize.layers.model import passport_layers
from passportize.surgery.surgery import UnsavedBranchWarning
from tests.support.round_trip import (
    ModelSnapshot,
    assert_failure_leaves_no_trace,
    assert_round_trip,
    assert_same_bits,
    forward_outputs,
)

PASSPORT = pp.Passport.generate(owner="Round Trip", date="2026-11-28", secret=bytes(range(32)))
PRESETS = {
    "keyed": pp.PassportConfig.keyed(),
    "paper": pp.PassportConfig.paper(),
    "signature": pp.PassportConfig.signature(),
}
CHANNELS = 16


class Backbone(nn.Module):
    """Conv, norm, conv, norm, head, with a residual add and an in-place activation."""

    def __init__(self, norm: Callable[[], nn.Module], dimension: int) -> None:
        super().__init__()
        conv = getattr(nn, f"Conv{dimension}d")
        self.conv1 = conv(3, CHANNELS, 3, padding=1)
        self.norm1 = norm()
        self.conv2 = conv(CHANNELS, CHANNELS, 3, padding=1)
        self.norm2 = norm()
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(CHANNELS, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm1(self.conv1(x)))
        x = self.act(self.norm2(self.conv2(x)) + x)
        return self.head(x.flatten(2).mean(2))


def _backbone(norm: Callable[[], nn.Module], dimension: int = 2) -> tuple[nn.Module, Tensor]:
    return Backbone(norm, dimension), torch.randn(4, 3, *([8] * dimension))


TORCH_MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "BatchNorm1d": lambda: _backbone(lambda: nn.BatchNorm1d(CHANNELS), 1),
    "BatchNorm2d": lambda: _backbone(lambda: nn.BatchNorm2d(CHANNELS)),
    "BatchNorm3d": lambda: _backbone(lambda: nn.BatchNorm3d(CHANNELS), 3),
    "BatchNorm2d, momentum None": lambda: _backbone(
        lambda: nn.BatchNorm2d(CHANNELS, momentum=None)
    ),
    "BatchNorm2d, plain": lambda: _backbone(lambda: nn.BatchNorm2d(CHANNELS, affine=False)),
    "BatchNorm2d, no statistics": lambda: _backbone(
        lambda: nn.BatchNorm2d(CHANNELS, track_running_stats=False)
    ),
    "SyncBatchNorm": lambda: _backbone(lambda: nn.SyncBatchNorm(CHANNELS)),
    "GroupNorm": lambda: _backbone(lambda: nn.GroupNorm(4, CHANNELS)),
    "GroupNorm, plain": lambda: _backbone(lambda: nn.GroupNorm(4, CHANNELS, affine=False)),
    "InstanceNorm1d": lambda: _backbone(lambda: nn.InstanceNorm1d(CHANNELS, affine=True), 1),
    "InstanceNorm2d": lambda: _backbone(
        lambda: nn.InstanceNorm2d(CHANNELS, affine=True, track_running_stats=True)
    ),
    "InstanceNorm3d, plain": lambda: _backbone(lambda: nn.InstanceNorm3d(CHANNELS), 3),
    "LayerNorm over images": lambda: _backbone(lambda: nn.LayerNorm((CHANNELS, 8, 8))),
    "RMSNorm over images": lambda: _backbone(lambda: nn.RMSNorm((CHANNELS, 8, 8))),
}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", TORCH_MODELS)
def test_every_norm_of_torch(name: str, preset: str) -> None:
    torch.manual_seed(1)
    model, x = TORCH_MODELS[name]()
    assert len(assert_round_trip(model, PASSPORT, x, config=PRESETS[preset])) == 2


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_token_models(norm: type[nn.Module]) -> None:
    model = nn.Sequential(
        nn.Linear(12, 16), norm(16), nn.Linear(16, 16), nn.GELU(), norm(16), nn.Linear(16, 3)
    )
    assert len(assert_round_trip(model, PASSPORT, torch.randn(4, 5, 12))) == 2


@pytest.mark.parametrize("norm_first", [False, True])
def test_transformer_encoder_with_its_fused_kernel(norm_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    assert len(assert_round_trip(model, PASSPORT, torch.randn(3, 5, 16))) == 4
    assert torch.backends.mha.get_fastpath_enabled()


TIMM_MODELS: dict[str, tuple[str, dict[str, object], int]] = {
    "resnet": ("resnet10t", {}, 32),
    "vit": ("vit_tiny_patch16_224", {"depth": 2, "img_size": 32}, 32),
    "convnext": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}, 32),
    "densenet": ("densenet121", {"block_config": (2, 2), "growth_rate": 8}, 32),
}


def tiny(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(1)
    model_name, arguments, size = TIMM_MODELS[name]
    return timm.create_model(model_name, num_classes=7, **arguments), torch.randn(4, 3, size, size)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", TIMM_MODELS)
def test_timm_architectures(name: str, preset: str) -> None:
    model, x = tiny(name)
    assert_round_trip(model, PASSPORT, x, config=PRESETS[preset], example_inputs=None)


@pytest.mark.parametrize("name", TIMM_MODELS)
def test_an_error_half_way_leaves_no_trace(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = tiny(name)
    assert_failure_leaves_no_trace(model, PASSPORT, monkeypatch, example_inputs=x)
    assert_round_trip(model, PASSPORT, x)


class Aliased(nn.Module):
    """One norm under two names, one parameter in two modules, hooks, odd attributes and flags."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 16)
        self.norm = nn.LayerNorm(16)
        self.second = nn.Linear(16, 16)
        self.also_norm = self.norm
        self.bank = nn.ModuleDict({"again": self.norm})
        self.tied = nn.Linear(16, 16)
        self.tied.weight = self.second.weight
        self.norm.note = {"kept": [1, 2]}
        self.norm.bias.requires_grad_(False)
        self.calls = 0
        self.norm.register_forward_hook(self._count)
        self.register_forward_pre_hook(lambda module, args: None)

    def _count(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        self.calls = self.calls + 1

    def forward(self, x: Tensor) -> Tensor:
        return self.tied(self.norm(self.second(self.norm(self.first(x)))))


def test_aliases_ties_hooks_and_flags_survive() -> None:
    model = Aliased()
    layers = assert_round_trip(model, PASSPORT, torch.randn(4, 12))
    assert len(layers) == 1
    assert model.norm is model.also_norm is model.bank["again"]


class Untraceable(nn.Module):
    """Python control flow on values, which no tracer follows."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 16)
        self.norm = nn.BatchNorm1d(16)
        self.second = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if float(x.detach().abs().max()) > 1e9:
            x = x / int(x.detach().sum())
        rows = [self.norm(x)]
        for _ in range(int(x.shape[0] > 1000000) + len([item for item in x.tolist() if not item])):
            rows.append(rows[-1])
        return self.second(rows[-1])


def test_untraceable_model() -> None:
    assert len(assert_round_trip(Untraceable(), PASSPORT, torch.randn(6, 12))) == 1


class ManyArguments(nn.Module):
    """Keyword arguments in, a dictionary out."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Conv2d(3, 16, 3, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.meta = nn.Linear(9, 16)
        self.other_norm = nn.LayerNorm(16)

    def forward(self, image: Tensor, *, meta: Tensor) -> dict[str, object]:
        features = self.norm(self.image(image))
        tokens = self.other_norm(self.meta(meta))
        return {"pooled": features.mean((2, 3)) + tokens, "parts": (features, [tokens])}


def test_keyword_inputs_and_nested_outputs() -> None:
    inputs = {"image": torch.randn(4, 3, 8, 8), "meta": torch.randn(4, 9)}
    assert len(assert_round_trip(ManyArguments(), PASSPORT, inputs)) == 2


def test_the_root_may_be_a_norm_itself() -> None:
    norm = nn.LayerNorm(16)
    with pytest.raises(pp.PassportizeError):
        pp.passportize(norm, PASSPORT, example_inputs=torch.randn(4, 16))
    assert type(norm) is nn.LayerNorm


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_dtypes(dtype: torch.dtype) -> None:
    model, x = _backbone(lambda: nn.BatchNorm2d(CHANNELS))
    assert_round_trip(model.to(dtype), PASSPORT, x.to(dtype))


def test_channels_last_and_training_flags() -> None:
    model, x = tiny("resnet")
    model = model.to(memory_format=torch.channels_last).train()
    model.layer1.eval()
    model.conv1.requires_grad_(False)
    assert_round_trip(model, PASSPORT, x.to(memory_format=torch.channels_last))
    assert model.training and not model.layer1.training


def test_after_training_the_plain_model_is_the_public_branch() -> None:
    model, x = tiny("resnet")
    pp.passportize(model, PASSPORT)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model.train()
    for _ in range(3):
        optimizer.zero_grad()
        labels = torch.tensor([0, 1, 2, 3])
        pp.joint_loss(model, x, labels, nn.functional.cross_entropy).total.backward()
        optimizer.step()
    public, _ = forward_outputs(model, x, training=False)
    host = {
        key: value.clone() for key, value in model.state_dict().items() if "passport" not in key
    }
    with pytest.warns(UnsavedBranchWarning):
        pp.unpassportize(model)
    plain, _ = forward_outputs(model, x, training=False)
    assert_same_bits(public, plain, "plain model after training")
    fresh, _ = tiny("resnet")
    fresh.load_state_dict(host, strict=True)
    assert_same_bits(public, forward_outputs(fresh, x, training=False)[0], "from the host's keys")


def test_deepcopy_of_a_passportized_model_is_independent() -> None:
    model, x = tiny("vit")
    before = ModelSnapshot.of(model)
    pp.passportize(model, PASSPORT)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pp.unpassportize(model)
    before.check(model)
    assert passport_layers(twin)
    for layer in passport_layers(twin).values():
        for owner, _, _ in layer.passport.weights.owners:
            assert any(owner is module for module in twin.modules())
    with pp.branch(twin, "private"):
        twin(x)
    pp.unpassportize(twin)


def test_twice_and_not_at_all() -> None:
    model, _ = tiny("vit")
    with pytest.raises(NotPassportized):
        pp.unpassportize(model)
    pp.passportize(model, PASSPORT)
    with pytest.raises(AlreadyPassportized, match="unpassportize"):
        pp.passportize(model, PASSPORT)
    pp.unpassportize(model)
