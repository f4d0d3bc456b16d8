"""Branches beside each other that a model's own code makes one layer of."""

from __future__ import annotations

import copy
import functools
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import passportize as pp
from passportize.attacks.disguise import disguise
from passportize.attacks.dummy_neurons import add_dummy_neurons
from passportize.release.claim import Claim
from passportize.verification.merged_branches import merged_like
from tests.support.small_protected import PASSPORT
from tests.support.widths import EXAMPLE, as_trained, marked, noised, outputs, seeded

pytestmark = pytest.mark.filterwarnings(
    "ignore::passportize.training.embedding.TrainedWeightsWarning"
)

WIDTHS = (3, 96, 192, 192)


class Branch(nn.Module):
    """A convolution and its norm."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn(self.conv(x))
        return out

    def folded(self, kernel: int) -> tuple[Tensor, Tensor]:
        """Kernel of a larger size, and bias, that compute the same."""
        spread = torch.sqrt(self.bn.running_var + self.bn.eps)  # type: ignore[operator]
        factors = self.bn.weight / spread
        rest = (kernel - self.conv.kernel_size[0]) // 2
        weight = nn.functional.pad(self.conv.weight, [rest] * 4) * factors.view(-1, 1, 1, 1)
        return weight, self.bn.bias - self.bn.running_mean * factors  # type: ignore[operator]


class SideBySide(nn.Module):
    """Branches of one kind and of another, merged before deployment (MobileOne, RepVGG)."""

    def __init__(self, inputs: int, outputs: int, kernels: tuple[int, ...]) -> None:
        super().__init__()
        self.branches = nn.ModuleList([Branch(inputs, outputs, size) for size in kernels])
        self.one: nn.Conv2d | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.one is not None:
            return torch.relu(self.one(x))
        return torch.relu(sum(branch(x) for branch in self.branches))  # type: ignore[arg-type]

    @torch.no_grad()
    def merge(self) -> None:
        parts = [branch.folded(3) for branch in self.branches]  # type: ignore[operator]
        weight, bias = (torch.stack(part).sum(0) for part in zip(*parts, strict=True))
        self.one = nn.Conv2d(weight.shape[1], len(weight), 3, padding=1)
        self.one.weight.copy_(weight)
        self.one.bias.copy_(bias)  # type: ignore[union-attr]
        del self.branches


class Merging(SideBySide):
    """By a method that changes the layer (MobileOne)."""

    def reparameterize(self) -> None:
        self.merge()


class Fused(SideBySide):
    """By one that returns another (RepViT)."""

    def fuse(self) -> nn.Module:
        self.merge()
        assert self.one is not None
        return nn.Sequential(self.one, nn.ReLU())


class Network(nn.Module):
    def __init__(self, block: type[SideBySide] = Merging, kernels: Any = (3, 3, 1)) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(block(one, other, kernels) for one, other in itertools.pairwise(WIDTHS))
        )
        self.head = nn.Linear(WIDTHS[-1], 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.blocks(x).mean((2, 3)))
        return out


@functools.cache
def released(block: type[SideBySide], kernels: tuple[int, ...]) -> tuple[nn.Module, Claim]:
    return marked(lambda: Network(block, kernels))


def merged(model: nn.Module) -> nn.Module:
    """What the model's own code makes of it, as timm's ``reparameterize_model`` does."""
    model = copy.deepcopy(model)
    for name, block in list(model.blocks.named_children()):  # type: ignore[union-attr,operator]
        if isinstance(block, Fused):
            setattr(model.blocks, name, block.fuse())
        else:
            block.reparameterize()
    return model


def judged(block: type[SideBySide], kernels: tuple[int, ...], suspect: nn.Module) -> pp.Verdict:
    model, claim = released(block, kernels)
    return pp.verify(suspect, PASSPORT, claim, released=model, example_inputs=EXAMPLE)


CASES = [(Merging, (3, 3, 1)), (Merging, (3, 3, 3, 3)), (Fused, (3, 1))]


@pytest.mark.parametrize(("block", "kernels"), CASES)
@pytest.mark.parametrize("way", ["alone", "noise", "dummies"])
def test_merged_and_disguised(block: type[SideBySide], kernels: tuple[int, ...], way: str) -> None:
    model, _ = released(block, kernels)
    suspect = merged(model)
    before = outputs(model)
    if way == "noise":
        suspect = noised(suspect, 0.3)
        before = outputs(suspect)
    if way == "dummies":
        add_dummy_neurons(suspect, "zero", 0.2, seeded(5), example_inputs=EXAMPLE)
    disguise(suspect, seeded(3), example_inputs=EXAMPLE)
    assert float((outputs(suspect) - before).abs().max()) < 1e-4 * float(before.abs().max())
    verdict = judged(block, kernels, suspect)
    links = verdict.links
    assert links is not None and links.similarity is not None
    # Of four branches alike a sum says little of each: it takes a larger network.
    assert verdict.accepted is True or len(kernels) > 3
    assert links.similarity.likeness > (0.9 if way == "noise" else 0.99)
    assert links.aligned_matched >= (0.9 if way == "noise" else 0.98) * links.entries_matched
    assert "merged likewise" in links.narrowed and links.narrowed in str(verdict)


@pytest.mark.parametrize(("block", "kernels"), CASES)
def test_a_merged_stranger_stays_at_chance(
    block: type[SideBySide], kernels: tuple[int, ...]
) -> None:
    matched = total = 0
    for seed in range(5):
        stranger = merged(as_trained(lambda: Network(block, kernels), 7 + seed))
        links = judged(block, kernels, stranger).links
        assert links is not None and links.accepted is False and links.aligned_strength < 12
        matched, total = matched + links.aligned_matched, total + links.aligned_total
    assert total and abs(matched - total / 2) < 3.5 * (total / 4) ** 0.5


def test_a_suspect_with_the_released_branches_is_compared_as_it_is() -> None:
    model, _ = released(*CASES[0])
    suspect = copy.deepcopy(model)
    assert merged_like(model, suspect) is None
    disguise(suspect, seeded(3), example_inputs=EXAMPLE)
    links = judged(*CASES[0], suspect).links
    assert links is not None and links.accepted and "merged" not in links.narrowed


class Refusing(SideBySide):
    def reparameterize(self) -> None:
        raise RuntimeError("not on this device")


def test_code_that_fails_leaves_the_released_model_as_it_was() -> None:
    model = as_trained(lambda: Network(Refusing, (3, 3)), 0)
    before = copy.deepcopy(model.state_dict())
    assert merged_like(model, merged(as_trained(Network, 0))) is None
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    # Nor does code that works touch it.
    model = as_trained(lambda: Network(Merging, (3, 3)), 0)
    before = copy.deepcopy(model.state_dict())
    assert merged_like(model, merged(model)) is not None
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
