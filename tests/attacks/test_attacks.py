from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

import passportize as pp
from passportize.attacks.closed_form import forge_private_branch
from passportize.attacks.neuron_scale import scale_neurons
from passportize.attacks.permutation import permute_channels
from passportize.attacks.sign_flip import flip_channel_signs
from passportize.errors import DegenerateSite, InvalidArgument
from passportize.release.claim_file import read_claim, write_claim
from tests.support.small_protected import (
    PASSPORT,
    TinyNet,
    accuracy,
    group_norm,
    images,
    loader,
    protected,
)

EVE = pp.Passport.generate("Eve", date="2026-02-01", secret=b"e" * 32)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(images("test")[0])


# --- sign flips ----------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["keyed", "paper", "signature"])
def test_sign_flips_tell_the_presets_apart(preset):
    released = protected(preset)
    before = pp.verify(released.plain, PASSPORT, released.claim, loader())
    assert before.matched == before.total
    model = released.copy()
    done = flip_channel_signs(model, seeded(), example_inputs=images("test")[0][:4])
    assert [site.norm for site in done] == ["bn1", "bn2", "bn3"]
    after = logits(model)
    assert torch.allclose(after, released.public, atol=1e-5, rtol=1e-5)
    assert torch.equal(after.argmax(1), released.public.argmax(1))
    verdict = pp.verify(model, PASSPORT, released.claim, loader())
    assert verdict.same_weights is False
    if preset == "paper":
        assert verdict.accepted is False
        assert 0.35 < verdict.matched / verdict.total < 0.65
    else:
        assert verdict.matched == verdict.total
        assert verdict.message == before.message
    if preset == "keyed":
        assert verdict.private_accuracy == pytest.approx(before.private_accuracy, abs=0.3)
        assert verdict.fidelity is True


def test_rescaling_too_leaves_both_branches_of_keyed():
    released = protected("keyed")
    model = released.copy()
    flip_channel_signs(model, seeded(1), rescale=8.0, example_inputs=images("test")[0][:4])
    assert torch.allclose(logits(model), released.public, atol=1e-3)
    verdict = pp.verify(model, PASSPORT, released.claim, loader())
    assert verdict.matched == verdict.total
    before = pp.verify(released.copy(), PASSPORT, released.claim, loader())
    assert verdict.private_accuracy == pytest.approx(before.private_accuracy, abs=0.3)


def test_group_norm_flips_whole_groups():
    released = protected("keyed", group_norm)
    model = released.copy()
    done = flip_channel_signs(model, seeded(2), example_inputs=images("test")[0][:4])
    assert len(done) == 3
    for site in done:
        groups = site.factors.view(8, -1)
        assert bool((groups == groups[:, :1]).all())
    assert torch.allclose(logits(model), released.public, atol=1e-5, rtol=1e-5)
    verdict = pp.verify(model, PASSPORT, released.claim, loader())
    assert verdict.matched == verdict.total
    assert verdict.private_accuracy == pytest.approx(accuracy(released.private), abs=0.6)


class Forked(nn.Module):
    """The convolution feeds the norm and a shortcut: a flip would change the function."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.norm = nn.BatchNorm2d(16)
        self.up = nn.ConvTranspose2d(16, 24, 2, groups=2)
        self.last = nn.BatchNorm2d(24)

    def forward(self, x):
        x = self.conv(x)
        return self.last(self.up(x + self.norm(x)))


def test_only_what_feeds_nothing_else_is_flipped():
    torch.manual_seed(0)
    model = Forked().eval()
    x = torch.randn(2, 3, 8, 8)
    before = model(x)
    done = flip_channel_signs(model, seeded(), share=1.0, example_inputs=x)
    assert [(site.norm, site.weight, site.flipped) for site in done] == [("last", "up.weight", 24)]
    assert torch.allclose(model(x), before, atol=1e-5)


def test_flips_on_a_timm_model():
    model = timm.create_model("resnet10t", num_classes=5).eval()
    x = torch.randn(2, 3, 64, 64)
    before = model(x)
    done = flip_channel_signs(model, seeded())
    assert len(done) > 8
    assert torch.allclose(model(x), before, atol=1e-4)


@pytest.mark.parametrize("wrong", [{"share": 1.5}, {"share": -0.1}, {"rescale": 0.5}])
def test_flip_arguments(wrong):
    with pytest.raises(InvalidArgument):
        flip_channel_signs(TinyNet(), **wrong)


# --- the closed-form private branch --------------------------------------------------------------


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, group_norm])
def test_closed_form_passes_the_published_tests_and_is_refused(tmp_path, norm):
    released = protected("keyed", norm)
    model = released.copy()
    state = copy.deepcopy(model.state_dict())
    forged = forge_private_branch(model, EVE)
    published = forged.published_tests(model, loader())
    assert published.passed
    assert published.signature == 1.0
    # Exactly the public branch, but for running statistics, which are measured.
    measured = 0.5 if norm is nn.BatchNorm2d else 0.01
    assert published.fidelity.private == pytest.approx(published.fidelity.public, abs=measured)
    # The claim is well-formed, and its private branch is as accurate as the model.
    write_claim(forged.claim, tmp_path / "eve.claim.safetensors")
    claim = read_claim(tmp_path / "eve.claim.safetensors")
    verdict = pp.verify(model, EVE, claim, loader())
    assert verdict.accepted is False
    assert verdict.strength < 16
    assert verdict.message is None
    assert verdict.fidelity is True
    assert verdict.same_weights is True
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_closed_form_needs_a_bottleneck_with_room():
    with pytest.raises(InvalidArgument, match="keyed"):
        forge_private_branch(TinyNet(), EVE, config=pp.PassportConfig.keyed())
    with pytest.raises(DegenerateSite, match="bottleneck=1"):
        forge_private_branch(TinyNet(), EVE, config=pp.PassportConfig.paper(bottleneck=64))


# --- permuted and rescaled channels --------------------------------------------------------------


def with_random_factors(name: str) -> nn.Module:
    """A timm model whose norms have factors and statistics that differ from channel to channel."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=7).eval()
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point() and tensor.dim() == 1:
                tensor.data.uniform_(0.5, 1.5)
            elif tensor.dim() > 1 and not bool(tensor.any()):
                tensor.data.normal_()
    return model


@pytest.mark.parametrize(
    ("name", "fewest"),
    [
        ("resnet10t", 10),
        ("densenet121", 100),  # concatenations, norms before weights
        ("mobilenetv3_small_050", 20),  # depthwise convolutions, gates
        ("convnext_atto", 15),
        ("mixer_s32_224", 9),
        ("vit_tiny_patch16_224", 13),
        ("regnety_002", 100),  # grouped convolutions
    ],
)
def test_permuted_and_rescaled_channels_leave_the_function(name, fewest):
    model = with_random_factors(name)
    x = torch.randn(1, *model.default_cfg["input_size"], generator=seeded())
    with torch.no_grad():
        before = model(x)
        done = permute_channels(model, seeded())
        permuted = model(x)
        assert scale_neurons(model, seeded(), decades=1.5, flip=0.5) > 100
        scaled = model(x)
    assert len(done) >= fewest
    spread = float(before.abs().max())
    assert float((permuted - before).abs().max()) < 1e-4 * spread
    assert float((scaled - before).abs().max()) < 1e-4 * spread


def test_every_layer_of_a_vgg_is_permuted():
    """Through the flattened map before its first linear layer, too."""
    torch.manual_seed(0)
    model = timm.create_model("vgg11_bn", num_classes=5).eval()
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        before = model(x)
        done = permute_channels(model, seeded())
        assert torch.allclose(model(x), before, atol=1e-5)
    assert sum(len(group.weights) for group in done) == 10


@pytest.mark.parametrize("preset", ["keyed", "signature"])
def test_permuted_channels_hide_the_signature(preset):
    released = protected(preset)
    model = released.copy()
    done = permute_channels(model, seeded(), example_inputs=images("test")[0][:4])
    assert [group.weights for group in done] == [
        ("conv1.weight",),
        ("conv2.weight",),
        ("conv3.weight",),
    ]
    assert torch.allclose(logits(model), released.public, atol=1e-4)
    verdict = pp.verify(model, PASSPORT, released.claim)
    assert verdict.accepted is False
    assert verdict.matched < 0.65 * verdict.total


def test_rescaled_neurons_cost_bits_of_the_rows_that_read_them():
    released = protected("keyed")
    model = released.copy()
    assert scale_neurons(model, seeded(), decades=3, example_inputs=images("test")[0][:4])
    assert torch.allclose(logits(model), released.public, atol=1e-3)
    verdict = pp.verify(model, PASSPORT, released.claim)
    # The rows of the first convolution read the image, and keep theirs.
    assert all(site.matched == site.bits for site in verdict.sites if site.name == "bn1")
    assert verdict.matched < verdict.total


class Twice(nn.Module):
    """One convolution runs twice, and a step that nobody knows sees channels in their order."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Conv2d(16, 24, 1)
        self.last = nn.Conv2d(24, 4, 1)

    def forward(self, x):
        x = self.norm(self.conv(torch.relu(self.conv(self.stem(x)))))
        return self.last(torch.relu(self.head(torch.cumsum(x, 1))))


def test_what_is_not_understood_stays_in_place():
    torch.manual_seed(0)
    model = Twice().eval()
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        before = model(x)
        done = permute_channels(model, seeded(), example_inputs=x)
        assert torch.allclose(model(x), before, atol=1e-5)
    assert [group.weights for group in done] == [("head.weight",)]


@pytest.mark.parametrize("wrong", [{"decades": -1.0}, {"decades": 7.0}, {"flip": 1.5}])
def test_scale_arguments(wrong):
    with pytest.raises(InvalidArgument):
        scale_neurons(TinyNet(), **wrong)
