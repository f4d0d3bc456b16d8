"""Trained models marked at the least change of what their layers compute."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

import passportize as pp
from passportize.errors import InvalidArgument
from passportize.layers.model import passport_layers
from passportize.release.claim import claim_of
from passportize.training.embedding import TrainedWeightsWarning
from tests.support.small_protected import TinyNet, accuracy, images, protected

PASSPORT = pp.Passport.generate(owner="Acme", date="2026-11-28", secret=bytes(range(32)))
OTHER = pp.Passport.generate(owner="Mallory", date="2026-11-28", secret=bytes(range(1, 33)))


class Attention(nn.Module):
    """Norms before and behind torch's own attention, fused projection and all."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(12, 64)
        self.layers = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 2
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.stem(x)).mean(1))


def shared() -> nn.Module:
    """Two norms that answer for the same rows, and a grouped convolution."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 5),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.BatchNorm2d(64),
        nn.Conv2d(64, 64, 3, groups=4),
        nn.InstanceNorm2d(64, affine=True),
    )


PICTURES = (8, 3, 24, 24)
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "attention": (Attention, (8, 6, 12)),
    "shared": (shared, PICTURES),
    "test_vit": (lambda: timm.create_model("test_vit"), (4, 3, 160, 160)),
    "test_convnext": (lambda: timm.create_model("test_convnext"), (4, 3, 160, 160)),
    "test_efficientnet": (lambda: timm.create_model("test_efficientnet"), (4, 3, 160, 160)),
    "test_nfnet": (lambda: timm.create_model("test_nfnet"), (4, 3, 160, 160)),
    "test_resnet": (lambda: timm.create_model("test_resnet"), (4, 3, 160, 160)),
}


def smooth(shape: tuple[int, ...]) -> Tensor:
    """Inputs that are alike in what lies side by side, as those of people are."""
    if len(shape) < 4:
        return torch.randn(shape) @ torch.diag(torch.logspace(0, -2, shape[-1])) + 0.5
    small = torch.rand(*shape[:2], shape[2] // 8, shape[3] // 8)
    return nn.functional.interpolate(small, shape[2:], mode="bilinear") + 0.05 * torch.randn(shape)


def build(name: str, **settings: object) -> tuple[nn.Module, list[Tensor]]:
    torch.manual_seed(0)
    make, shape = MODELS[name]
    config = pp.PassportConfig.trained(**settings)
    model = make()
    batches = [smooth(shape), smooth(shape)]
    with torch.no_grad():
        for batch in batches * 3:
            model(batch)
    return pp.passportize(model.eval(), PASSPORT, config=config, example_inputs=batches[0]), batches


@pytest.mark.parametrize("name", MODELS)
def test_all_bits_are_in_and_outputs_change_less_than_by_the_least_weights(name: str) -> None:
    model, batches = build(name, bits=150, shortest_row=8)
    plain = copy.deepcopy(model)
    others = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    done = pp.embed_signature(model, calibration=batches)
    assert torch.equal(random, torch.get_rng_state())
    assert done.after == done.bits == 150
    assert done.by_output >= 0.5 * done.bits
    touched = {part.weight for layer in passport_layers(model).values() for part in _parts(layer)}
    beside = {name.replace("weight", "bias") for name in touched}
    for key, value in model.state_dict().items():
        may = key in touched | beside or key.endswith(("running_mean", "running_var"))
        assert may or torch.equal(value, others[key]), key
    least = copy.deepcopy(plain)
    with pytest.warns(TrainedWeightsWarning) if _warns(plain) else _nothing():
        pp.embed_signature(least)
    with torch.no_grad():
        moved, moved_least = (
            sum(float((each(x) - plain(x)).square().sum()) for x in batches)
            for each in (model, least)
        )
    assert moved < 0.8 * moved_least
    claim = claim_of(model)
    verdict = pp.verify(pp.unpassportize(model), PASSPORT, claim)
    assert verdict.accepted and verdict.matched == 150


def _parts(layer: pp.PassportLayer):
    return layer.passport.site.anchor.parts if layer.passport.bound else ()


def _warns(model: nn.Module) -> bool:
    return any(
        int(value) > 0
        for key, value in model.state_dict().items()
        if key.endswith("num_batches_tracked") and ".passport." not in key
    )


def _nothing():
    return pytest.MonkeyPatch.context()


@pytest.mark.parametrize("preset", ["trained", "signature", "keyed"])
def test_a_trained_network_keeps_its_accuracy(preset: str) -> None:
    plain = protected("signature").copy()
    x, _ = images("test")
    calibration, _ = images("train")
    with torch.no_grad():
        before = accuracy(plain(x))
    config = getattr(pp.PassportConfig, preset)(**{"bits": 100} if preset == "trained" else {})
    model = pp.passportize(plain, OTHER, config=config).eval()
    done = pp.embed_signature(model, calibration=calibration[:256].split(64))
    assert done.after == done.bits
    with torch.no_grad():
        lost = before - accuracy(model(x))
    assert lost <= (0.3 if preset == "trained" else 1.5)


def test_labels_are_ignored_and_iterators_are_read_once() -> None:
    made = []
    for kind in range(4):
        model, batches = build("shared", bits=64, shortest_row=8)
        calibration = [
            batches,
            iter(batches),
            [(batch, torch.zeros(len(batch), dtype=torch.long)) for batch in batches],
            ([batch] for batch in batches),
        ][kind]
        pp.embed_signature(model, calibration=calibration)
        made.append(model.state_dict())
    for key, value in made[0].items():
        assert all(torch.equal(value, other[key]) for other in made[1:]), key


def test_means_and_variances_follow() -> None:
    """Behind a turned layer the norm still sees what its statistics say."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 200, 3, bias=False), nn.BatchNorm2d(200))
    x = torch.rand(16, 8, 12, 12) + torch.linspace(0, 1, 8)[:, None, None]
    model[1].momentum = None
    model(x)
    model.eval()
    config = pp.PassportConfig.trained(margin=2.0)
    pp.passportize(model, PASSPORT, config=config, example_inputs=x)
    pp.embed_signature(model, calibration=[x])
    with torch.no_grad():
        z = model[0](x).double()
    torch.testing.assert_close(
        model[1].running_mean.double(), z.mean((0, 2, 3)), atol=2e-4, rtol=1e-3
    )
    torch.testing.assert_close(
        model[1].running_var.double(), z.var((0, 2, 3)), atol=2e-4, rtol=2e-3
    )


def test_biases_take_the_mean_away() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(80, 100), nn.LayerNorm(100))
    x = torch.rand(500, 80)
    with torch.no_grad():
        before = model[0](x).mean(0)
    config = pp.PassportConfig.trained(margin=2.0)
    pp.passportize(model, PASSPORT, config=config, example_inputs=x)
    pp.embed_signature(model, calibration=[x])
    with torch.no_grad():
        torch.testing.assert_close(model[0](x).mean(0), before, atol=1e-4, rtol=1e-4)


def test_rows_wider_than_memory_allows_are_changed_around_the_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("passportize.training.marked_rows._WIDEST", 300)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(700, 100), nn.LayerNorm(100))
    x = torch.randn(400, 700)
    before = model[0].weight.detach().clone()
    pp.passportize(model, PASSPORT, config=pp.PassportConfig.trained(bits=50), example_inputs=x)
    done = pp.embed_signature(model, calibration=[x])
    assert done.after == done.by_output == 50
    columns = (model[0].weight != before).any(0).nonzero().flatten()
    assert 256 < len(columns) <= 300 and int(columns[-1] - columns[0]) < 300


def test_progress_comes_to_its_end() -> None:
    model, batches = build("shared", bits=64, shortest_row=8)
    seen: list[tuple[int, int]] = []
    pp.embed_signature(model, calibration=batches, progress=lambda *step: seen.append(step))
    assert seen and seen[-1][0] == seen[-1][1]
    assert all(a <= b for (a, _), (b, _) in itertools.pairwise(seen))


def test_an_interrupt_leaves_everything_as_it_was() -> None:
    model, batches = build("shared", bits=64, shortest_row=8)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    hooks = [(len(module._forward_hooks), module.training) for module in model.modules()]
    calls = 0

    def interrupt(done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pp.embed_signature(model, calibration=batches, progress=interrupt)
    assert calls
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert hooks == [(len(each._forward_hooks), each.training) for each in model.modules()]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"calibration": []}, "no batch"),
        ({"calibration": iter([])}, "no batch"),
        ({"calibration": [torch.zeros(1, 3, 24, 24)], "output_share": 0.0}, "output_share"),
        ({"calibration": 3}, "batches of inputs"),
        ({"calibration": torch.zeros(4, 3, 24, 24)}, "for one batch"),
    ],
)
def test_what_makes_no_sense(arguments: dict[str, object], match: str) -> None:
    model, _ = build("shared", bits=64, shortest_row=8)
    with pytest.raises(InvalidArgument, match=match):
        pp.embed_signature(model, **arguments)


def test_inputs_that_are_not_numbers_leave_it_to_the_least_weights() -> None:
    model, batches = build("shared", bits=64, shortest_row=8)
    batches[0][0] = float("nan")
    done = pp.embed_signature(model, calibration=batches)
    assert done.by_output == 0 and done.after == done.bits


def test_fresh_models_do_not_warn() -> None:
    pp.embed_signature(pp.passportize(TinyNet(), PASSPORT))


def test_half_precision() -> None:
    model, batches = build("test_vit", bits=60)
    model = model.to(torch.bfloat16)
    done = pp.embed_signature(model, calibration=[batch.bfloat16() for batch in batches])
    assert done.after == done.bits == done.by_output == 60


def test_what_marking_makes_of_the_outputs_is_told() -> None:
    moved = []
    for share in (0.001, 0.03):
        model, batches = build("test_resnet", bits=150, shortest_row=8)
        with torch.no_grad():
            before = model(batches[0]).double()
            # What can be read only once will do.
            done = pp.embed_signature(model, calibration=iter(batches), output_share=share)
            after = model(batches[0]).double()
        assert done.outputs_moved == pytest.approx(
            float((after - before).square().sum() / (len(before) * before.var(0, False).sum())),
            rel=1e-6,
        )
        assert f"{done.outputs_moved:.2%}" in str(done)
        moved.append(done.outputs_moved)
    assert 0 < moved[0] < moved[1] < 1
    fresh = nn.Sequential(nn.Linear(8, 64), nn.LayerNorm(64))
    fresh = pp.passportize(fresh, PASSPORT, example_inputs=torch.zeros(2, 8))
    assert pp.embed_signature(fresh).outputs_moved is None
