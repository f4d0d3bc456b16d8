"""All symmetries at once: outputs stay, nothing reads plainly, and the alignment undoes it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn

import passportize as pp
from passportize.alignment.alignment import align
from passportize.alignment.held_out import HeldOut
from passportize.alignment.tied_channels import find_tied_channels
from passportize.attacks.disguise import disguise, mix_channels
from passportize.errors import InvalidArgument
from passportize.layers.model import switch_of
from passportize.release.claim import Claim, claim_of
from tests.support.disguised import Attention, Bottlenecks, Stream
from tests.support.small_protected import PASSPORT

# Marks are put into trained models here on purpose, at any cost in accuracy.
pytestmark = pytest.mark.filterwarnings(
    "ignore::passportize.training.embedding.TrainedWeightsWarning"
)

TOKENS, PICTURE = torch.randn(2, 5, 6), torch.randn(2, 3, 8, 8)
SMALL: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "layer norm": (lambda: Stream(nn.LayerNorm), TOKENS),
    "rms norm": (lambda: Stream(nn.RMSNorm), TOKENS),
    "layer scale": (lambda: Stream(nn.LayerNorm, scale=True), TOKENS),
    "bottlenecks": (lambda: Bottlenecks(nn.Identity()), PICTURE),
    "attention": (lambda: Attention(True), TOKENS),
    "attention by products": (lambda: Attention(False), TOKENS),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def as_trained(model: nn.Module, seed: int = 0) -> nn.Module:
    """Factors, shifts and statistics drawn at random, as a training would leave them."""
    generator = seeded(seed)
    for module in model.modules():
        if isinstance(getattr(module, "running_var", None), torch.Tensor):
            module.running_var.uniform_(0.5, 2.0, generator=generator)
            module.running_mean.normal_(0, 0.3, generator=generator)
        for key in ("weight", "bias"):
            parameter = getattr(module, key, None)
            if isinstance(parameter, nn.Parameter) and parameter.dim() == 1:
                low = 0.5 if key == "weight" else -0.3
                parameter.uniform_(low, low + 1.0, generator=generator)
    return model.eval()


@pytest.mark.parametrize("name", SMALL)
def test_outputs_stay_and_every_matrix_moves(name: str) -> None:
    make, x = SMALL[name]
    torch.manual_seed(1)
    model = as_trained(make())
    before, weights = model(x), copy.deepcopy(model.state_dict())
    tied = find_tied_channels(model, x)
    mixed = mix_channels(model, seeded(), example_inputs=x)
    assert mixed == sum(space.size * space.blocks for space in tied.spaces) > 0
    assert torch.allclose(model(x), before, atol=1e-4)
    for space in tied.spaces:
        for side in space.sides:
            axis = tied.axes[side.axis]
            if axis.role != "vector":
                changed = (model.state_dict()[axis.tensor] - weights[axis.tensor]).abs()
                assert float(axis.of(changed).mean()) > 1e-3, axis.tensor
    found = disguise(model, seeded(1), example_inputs=x)
    assert found.mixed == mixed and found.permuted
    assert torch.allclose(model(x), before, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_the_alignment_gives_the_released_weights_back(name: str) -> None:
    """Up to what all channels have in common before a LayerNorm, which is nothing to it."""
    make, x = SMALL[name]
    torch.manual_seed(2)
    released = as_trained(make())
    suspect = copy.deepcopy(released)
    disguise(suspect, seeded(5), example_inputs=x)
    own = released.state_dict()
    tied = find_tied_channels(suspect, x)
    held_out = HeldOut(tied, {key: value.shape for key, value in own.items()}, ())
    found = align(own, suspect.state_dict(), tied, held_out)
    for key, tensor in own.items():
        if tensor.dim() > 1:
            alike = torch.cosine_similarity(found.tensors[key].flatten(), tensor.flatten(), dim=0)
            assert float(alike) > 0.9, key


@pytest.fixture(scope="module")
def owned() -> tuple[nn.Module, Claim]:
    """A ViT of two blocks with a mark, small enough to be disguised within a second."""
    torch.manual_seed(3)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, num_classes=10)
    marked = pp.passportize(
        as_trained(model).train(), PASSPORT, config=pp.PassportConfig.signature(margin=2.0)
    )
    pp.embed_signature(marked)
    claim = claim_of(marked)
    switch_of(marked).saved = True
    return pp.unpassportize(marked).eval(), claim


def judged(suspect: nn.Module, owned: tuple[nn.Module, Claim]) -> pp.Verdict:
    released, claim = owned
    return pp.verify(
        suspect, PASSPORT, claim, released=released, example_inputs=torch.zeros(1, 3, 64, 64)
    )


def test_a_rotated_vit_is_accepted_through_the_released_weights(
    owned: tuple[nn.Module, Claim],
) -> None:
    suspect = copy.deepcopy(owned[0])
    x = torch.randn(2, 3, 64, 64)
    before = suspect(x)
    assert disguise(suspect, seeded(4), example_inputs=x).mixed > 1000
    assert torch.allclose(suspect(x), before, atol=1e-4 * float(before.detach().abs().max()))
    assert not pp.verify(suspect, PASSPORT, owned[1]).accepted
    verdict = judged(suspect, owned)
    links = verdict.links
    assert verdict.accepted and links is not None and links.similarity is not None
    assert links.aligned_matched >= 0.99 * links.entries_matched
    assert links.similarity.likeness > 0.95


def test_noise_below_the_disguise(owned: tuple[nn.Module, Claim]) -> None:
    suspect = copy.deepcopy(owned[0])
    with torch.no_grad():
        for parameter in suspect.parameters():
            if parameter.dim() > 1:
                rows = parameter.flatten(1)
                size = rows.square().mean(1, keepdim=True).sqrt()
                rows += 0.3 * size * torch.randn(rows.shape, generator=seeded(6))
    disguise(suspect, seeded(4), example_inputs=torch.randn(2, 3, 64, 64))
    verdict = judged(suspect, owned)
    links = verdict.links
    assert verdict.accepted and links is not None
    assert links.aligned_strength > 0.85 * links.entries_matched


def test_a_stranger_stays_one(owned: tuple[nn.Module, Claim]) -> None:
    torch.manual_seed(99)
    stranger = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, num_classes=10)
    disguise(as_trained(stranger, 8), seeded(4), example_inputs=torch.randn(2, 3, 64, 64))
    links = judged(stranger.eval(), owned).links
    assert links is not None and links.accepted is False and links.similarity is not None
    assert abs(links.similarity.likeness) < 0.05 and links.aligned_strength < 16


def test_condition_below_one_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="at least 1"):
        mix_channels(Stream(nn.LayerNorm), condition=0.5, example_inputs=TOKENS)
