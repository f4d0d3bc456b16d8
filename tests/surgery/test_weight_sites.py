"""Models without norms: bits in the weights themselves, or an error that says how."""

from __future__ import annotations

import copy
import io

import pytest
import timm
import torch
from torch import Tensor, nn

import passportize as pp
from passportize.errors import InvalidArgument, NoNormalization, UnknownSite
from passportize.layers.model import passport_layers
from passportize.signature.site import Role
from tests.support.round_trip import assert_failure_leaves_no_trace, assert_round_trip

PASSPORT = pp.Passport.generate(owner="Norm Free", date="2026-11-28", secret=bytes(range(32)))
SIGNATURE = pp.PassportConfig.signature()


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=4),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 12, 3),
        nn.Flatten(),
        nn.Linear(12 * 100, 5),
    )


@pytest.mark.parametrize("preset", ["keyed", "paper"])
def test_other_presets_say_what_to_do(preset: str) -> None:
    with pytest.raises(NoNormalization, match=r"PassportConfig\.signature\(\)"):
        pp.passportize(plain(), PASSPORT, config=getattr(pp.PassportConfig, preset)())


def test_plan_binds_each_weight_to_itself() -> None:
    planned = pp.plan(plain(), config=SIGNATURE)
    assert [site.channels for site in planned.role(Role.BOUND)] == [16, 16, 12, 5]
    assert planned.bits == 49
    assert "weights themselves" in str(planned)


@pytest.mark.parametrize("name", ["nf_regnet_b0", "nf_resnet26"])
def test_timm_models(name: str) -> None:
    model = timm.create_model(name, num_classes=10)
    x = torch.randn(2, 3, 64, 64)
    layers = assert_round_trip(model, PASSPORT, x, config=SIGNATURE)
    assert len(layers) >= 11


def test_round_trip_and_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 3, 8, 8)
    assert len(assert_round_trip(plain(), PASSPORT, x, config=SIGNATURE)) == 4
    assert_failure_leaves_no_trace(plain(), PASSPORT, monkeypatch, config=SIGNATURE)


def test_training_embeds_every_bit() -> None:
    model = pp.passportize(plain(), PASSPORT, config=SIGNATURE).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(8, 3, 8, 8), torch.arange(8) % 5
    assert pp.signature_accuracy(model) < 0.9
    for _ in range(150):
        optimizer.zero_grad()
        pp.joint_loss(model, x, y, nn.functional.cross_entropy).total.backward()
        optimizer.step()
    assert pp.signature_accuracy(model) == 1.0


def test_a_copy_and_a_file_are_models_of_their_own() -> None:
    model = pp.passportize(plain(), PASSPORT, config=SIGNATURE)
    x = torch.randn(2, 3, 8, 8)
    twin = copy.deepcopy(model)
    for layer in passport_layers(twin).values():
        assert all(
            any(owner is module for module in twin.modules())
            for owner, _, _ in layer.passport.weights.owners
        )
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(model(x), twin(x)) and torch.equal(model(x), loaded(x))
    assert [type(module) for module in pp.unpassportize(loaded).modules()] == [
        type(module) for module in plain().modules()
    ]
    pp.unlock(twin, PASSPORT)


class Attention(nn.Module):
    """The projection of nn.MultiheadAttention is never called, only its weight is used."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x)[0])


def test_weights_used_without_their_layer() -> None:
    layers = assert_round_trip(Attention(), PASSPORT, torch.randn(3, 5, 16), config=SIGNATURE)
    assert len(layers) == 3  # what makes queries, keys and values is a parameter of its own


def test_selection_frozen_weights_and_wrong_arguments() -> None:
    model = plain()
    model[0].requires_grad_(False)
    planned = pp.plan(model, config=SIGNATURE, where=["0", "2"])
    assert [site.role for site in planned.sites] == [Role.SKIPPED, Role.BOUND] + [Role.SKIPPED] * 2
    assert "frozen" in planned.sites[0].reason
    planned = pp.plan(model, config=SIGNATURE, where=["0", "2"], include_frozen=True)
    assert len(planned.role(Role.BOUND)) == 2
    with pytest.raises(UnknownSite):
        pp.plan(model, config=SIGNATURE, where="layer9*")
    with pytest.raises(InvalidArgument, match="where="):
        pp.plan(model, config=SIGNATURE, anchors={"0": "0.weight"})
    with pytest.raises(NoNormalization):
        pp.plan(nn.Sequential(nn.ReLU()), config=SIGNATURE)
