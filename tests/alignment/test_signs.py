"""Signs that change where nothing sees it: the way is odd, or takes length or mean away.

The thief here flips rows and columns by hand, from nothing but the formulas of the layers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from passportize.alignment.held_out import HeldOut
from passportize.alignment.matching import Matching
from passportize.alignment.tied_channels import find_tied_channels
from passportize.alignment.undoing import Undoing
from passportize.attacks.neuron_scale import scale_neurons
from tests.alignment.test_looked_through import alike_rows, built, drawn
from tests.support import looked_through as kinds

WIDTH = 32
IMAGES = torch.randn(2, 3, 12, 12, generator=drawn())
TOKENS = torch.randn(2, 6, kinds.INPUTS, generator=drawn())


class Convolved(nn.Module):
    def __init__(self, norm: Callable[[int], nn.Module], step: nn.Module) -> None:
        super().__init__()
        self.first, self.norm, self.step = nn.Conv2d(3, WIDTH, 3), norm(WIDTH), step
        self.second, self.head = nn.Conv2d(WIDTH, 48, 3), nn.Conv2d(48, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.step(self.norm(self.first(x)))
        return self.head(torch.relu(self.second(x))).mean((2, 3))


class Atan(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.atan(x)


class Gated(nn.Module):
    """One of two branches goes through a step, the other multiplies it (SwiGLU)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(kinds.INPUTS, 64), nn.Linear(kinds.INPUTS, 64)
        self.down, self.head = nn.Linear(64, WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        product = nn.functional.silu(self.gate(x)) * self.up(x)
        return self.head(torch.relu(self.down(product)))


class Packed(Gated):
    """Both branches in one layer (Phi-3)."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Linear(kinds.INPUTS, 1024, bias=False)
        self.down = nn.Linear(512, WIDTH)
        del self.gate, self.up

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.both(x).chunk(2, -1)
        return self.head(torch.relu(self.down(nn.functional.silu(gate) * up)))


class Quotient(Gated):
    """The same where it divides."""

    def forward(self, x: Tensor) -> Tensor:
        product = self.up(x) / (1 + torch.exp(self.gate(x)))
        return self.head(torch.relu(self.down(product)))


class Squared(Gated):
    """Channels times themselves have no sign and no size to be changed."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        return self.head(torch.relu(self.down(x * x)))


class Modulated(Gated):
    """Two branches of which neither went through a step (FocalNet), and a third."""

    def __init__(self) -> None:
        super().__init__()
        self.third = nn.Linear(kinds.INPUTS, 64)

    def forward(self, x: Tensor) -> Tensor:
        product = self.gate(x) * self.up(x) * self.third(x)
        return self.head(torch.relu(self.down(product)))


class Added(Gated):
    """The same where one branch is added to the product."""

    def forward(self, x: Tensor) -> Tensor:
        up = self.up(x)
        return self.head(torch.relu(self.down(self.gate(x) * up + up)))


class Stepped(Gated):
    """The same where a step follows the product."""

    def forward(self, x: Tensor) -> Tensor:
        product = nn.functional.silu(self.gate(x) * self.up(x))
        return self.head(torch.relu(self.down(product)))


class NextToIt(nn.Module):
    """Kernels of single channels before a LayerNorm (ConvNeXt)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, WIDTH, 3), nn.LayerNorm(WIDTH)
        self.alone = nn.Conv2d(WIDTH, WIDTH, 7, padding=3, groups=WIDTH)
        self.inward, self.head = nn.Linear(WIDTH, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.alone(self.stem(x)).permute(0, 2, 3, 1))
        return self.head(torch.relu(self.inward(x)).mean((1, 2)))


class NormedByShiftedLength(kinds.NormedByOwnLength):
    """Queries and keys behind a norm with factors about one (Gemma 3)."""

    norm = kinds.OnePlusNorm


def signs(count: int, seed: int = 1) -> Tensor:
    return torch.randint(0, 2, (count,), generator=drawn(seed)) * 2.0 - 1


def channels(model: nn.Module) -> None:
    """Every channel by itself, where it is made and where it is read."""
    flipped = signs(WIDTH)
    for tensor in (model.first.weight, model.first.bias):  # type: ignore[union-attr]
        tensor.mul_(flipped.view(-1, *(1,) * (tensor.dim() - 1)))
    if getattr(model.norm, "running_mean", None) is not None:
        model.norm.running_mean.mul_(flipped)  # type: ignore[union-attr,operator]
    if getattr(model.norm, "bias", None) is not None:
        model.norm.bias.mul_(flipped)  # type: ignore[union-attr,operator]
    model.second.weight.mul_(flipped.view(1, -1, 1, 1))  # type: ignore[union-attr]


def groups(model: nn.Module) -> None:
    """All channels of a group at once; the factors of its norm take it over."""
    flipped = signs(8).repeat_interleave(WIDTH // 8)
    model.first.weight.mul_(flipped.view(-1, 1, 1, 1))  # type: ignore[union-attr]
    model.first.bias.mul_(flipped)  # type: ignore[union-attr]
    model.norm.weight.mul_(flipped)  # type: ignore[union-attr]


def branch(model: nn.Module) -> None:
    flipped = signs(64)
    model.up.weight.mul_(flipped[:, None])  # type: ignore[union-attr]
    model.up.bias.mul_(flipped)  # type: ignore[union-attr]
    model.down.weight.mul_(flipped)  # type: ignore[union-attr]


def packed_branch(model: nn.Module) -> None:
    """The channels of one branch, which change places too, with their gates."""
    order, flipped = torch.randperm(512, generator=drawn(3)), signs(512)
    rows = torch.cat([order, 512 + order])
    weight = model.both.weight  # type: ignore[union-attr]
    weight.copy_(weight[rows])  # type: ignore[operator,index]
    weight[512:].mul_(flipped[:, None])  # type: ignore[index,operator]
    model.down.weight.copy_(model.down.weight[:, order] * flipped)  # type: ignore[union-attr,operator,index]


def factors(model: nn.Module) -> None:
    """Each branch has a size and a sign of its own, what reads the product those of all."""
    whole = torch.ones(64)
    for seed, part in enumerate((model.gate, model.up, model.third)):
        drawn_sizes = torch.rand(64, generator=drawn(seed)) + 0.5
        changed = signs(64, seed) * drawn_sizes
        part.weight.mul_(changed[:, None])  # type: ignore[union-attr,operator]
        part.bias.mul_(changed)  # type: ignore[union-attr,operator]
        whole = whole * changed
    model.down.weight.div_(whole)  # type: ignore[union-attr,operator]


def layer(model: nn.Module) -> None:
    for tensor in (model.alone.weight, model.alone.bias, model.norm.weight):  # type: ignore[union-attr]
        tensor.mul_(-1)


def queries_and_keys(model: nn.Module) -> None:
    """Both sides of every product, another choice in every head."""
    flipped = signs(kinds.INNER)
    for part in range(2):
        own = slice(part * kinds.INNER, (part + 1) * kinds.INNER)
        model.attention.qkv.weight[own].mul_(flipped[:, None])  # type: ignore[union-attr]
        model.attention.qkv.bias[own].mul_(flipped)  # type: ignore[union-attr]


def queries(model: nn.Module) -> None:
    """Queries alone, the same choice in every head: the factors of the norm take it over."""
    flipped = signs(kinds.SIZE)
    rows = flipped.repeat(kinds.HEADS)
    model.attention.qkv.weight[: kinds.INNER].mul_(rows[:, None])  # type: ignore[union-attr]
    model.attention.qkv.bias[: kinds.INNER].mul_(rows)  # type: ignore[union-attr]
    model.attention.q_norm.weight.mul_(flipped)  # type: ignore[union-attr]


def centred_queries(model: nn.Module) -> None:
    """The same where the mean is taken away: all channels of all heads at once."""
    model.attention.qkv.weight[: kinds.INNER].mul_(-1)  # type: ignore[union-attr]
    model.attention.qkv.bias[: kinds.INNER].mul_(-1)  # type: ignore[union-attr]
    model.attention.q_norm.weight.mul_(-1)  # type: ignore[union-attr]


def values(model: nn.Module) -> None:
    """Values, the kernels that see each by itself, and what reads their sums."""
    flipped = signs(kinds.INNER)
    own = slice(2 * kinds.INNER, 3 * kinds.INNER)
    model.attention.qkv.weight[own].mul_(flipped[:, None])  # type: ignore[union-attr]
    model.attention.qkv.bias[own].mul_(flipped)  # type: ignore[union-attr]
    model.attention.local.bias.mul_(flipped)  # type: ignore[union-attr]
    model.attention.out.weight.mul_(flipped)  # type: ignore[union-attr]


def plain(width: int) -> nn.Module:
    return nn.BatchNorm2d(width, affine=False)


def by_groups(width: int) -> nn.Module:
    return nn.GroupNorm(8, width)


def tokens(kind: type[nn.Module]) -> Callable[[], nn.Module]:
    return lambda: kinds.Tokens(kind)


CASES: dict[str, tuple[Callable[[], nn.Module], Tensor, Callable[[nn.Module], None]]] = {
    "tanh": (lambda: Convolved(nn.BatchNorm2d, nn.Tanh()), IMAGES, channels),
    "softsign": (lambda: Convolved(nn.BatchNorm2d, nn.Softsign()), IMAGES, channels),
    "bounds": (lambda: Convolved(nn.BatchNorm2d, nn.Hardtanh()), IMAGES, channels),
    "arcus tangens": (lambda: Convolved(nn.BatchNorm2d, Atan()), IMAGES, channels),
    "without factors": (lambda: Convolved(plain, nn.Tanh()), IMAGES, channels),
    "of each image": (lambda: Convolved(nn.InstanceNorm2d, nn.Tanh()), IMAGES, channels),
    "groups of a norm": (lambda: Convolved(by_groups, nn.ReLU()), IMAGES, groups),
    "gate": (Gated, TOKENS, branch),
    "gate in one layer": (Packed, TOKENS, packed_branch),
    "quotient": (Quotient, TOKENS, branch),
    "product": (Modulated, TOKENS, factors),
    "layer norm": (NextToIt, IMAGES, layer),
    "queries normed by length": (tokens(kinds.NormedByOwnLength), TOKENS, queries_and_keys),
    "normed with an offset": (tokens(NormedByShiftedLength), TOKENS, queries_and_keys),
    "queries alone": (tokens(kinds.NormedByOwnLength), TOKENS, queries),
    "centred queries": (tokens(kinds.NormedQueries), TOKENS, centred_queries),
    "values seen by themselves": (tokens(kinds.ConvolvedValues), TOKENS, values),
}


@pytest.mark.parametrize("case", CASES)
def test_what_nothing_sees_comes_back(case: str) -> None:
    make, x, thief = CASES[case]
    model = built(make)
    suspect = copy.deepcopy(model)
    with torch.no_grad():
        thief(suspect)
        torch.testing.assert_close(suspect(x), model(x), atol=1e-4, rtol=1e-4)
    own, other = model.state_dict(), suspect.state_dict()
    assert any(not torch.equal(tensor, other[name]) for name, tensor in own.items())
    found = alike_rows(model, suspect, x, signed=True)
    assert min(found.values()) >= 0.95, found


@pytest.mark.parametrize("case", CASES)
def test_the_disguise_knows_it(case: str) -> None:
    make, x, _ = CASES[case]
    model = built(make)
    suspect = copy.deepcopy(model)
    assert scale_neurons(suspect, drawn(2), decades=0, flip=0.5, example_inputs=x) > 0
    with torch.no_grad():
        torch.testing.assert_close(suspect(x), model(x), atol=1e-4, rtol=1e-4)
    found = alike_rows(model, suspect, x, signed=True)
    assert min(found.values()) >= 0.95, found


def test_rows_of_a_bundle_have_signs_of_their_own() -> None:
    """At the first look already: of a gate and a mirrored row together nothing would be left."""
    model = built(Packed)
    suspect = copy.deepcopy(model)
    with torch.no_grad():
        packed_branch(suspect)
    tied = find_tied_channels(model, TOKENS)
    tensors = dict(model.state_dict())
    held_out = HeldOut(tied, {name: tensor.shape for name, tensor in tensors.items()})
    undoing = Undoing(tensors, suspect.state_dict(), tied, held_out)
    (number,) = [at for at, unit in enumerate(tied.units) if unit.size == 512]
    found = Matching(undoing, tied, held_out).match(number, late=False)
    assert found is not None
    assert torch.equal(found, torch.randperm(512, generator=drawn(3)).argsort())


class OwnLayerNorm(nn.Module):
    """A LayerNorm of a class of its own, which nobody knows to be one (ConvNeXt's first)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.normalized_shape = (width,)
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(1, keepdim=True)
        x = x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt()
        return x * self.weight[:, None, None] + self.bias[:, None, None]


def test_a_norm_that_is_not_known_keeps_signs() -> None:
    model = built(lambda: Convolved(OwnLayerNorm, nn.Tanh()))
    suspect = copy.deepcopy(model)
    assert scale_neurons(suspect, drawn(2), flip=0.5, example_inputs=IMAGES) > 0
    with torch.no_grad():
        torch.testing.assert_close(suspect(IMAGES), model(IMAGES), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(suspect.first.weight, model.first.weight)


def test_uneven_bounds_keep_signs() -> None:
    model = built(lambda: Convolved(nn.BatchNorm2d, nn.Hardtanh(-1, 2)))
    tied = find_tied_channels(model, IMAGES)
    (columns,) = [a for a in tied.axes if a.tensor == "second.weight" and a.role == "columns"]
    assert bool((tied.mirrors[columns.atoms] == tied.mirrors[0]).all())


def test_what_is_squared_stays() -> None:
    model = built(Squared)
    suspect = copy.deepcopy(model)
    tied = find_tied_channels(model, TOKENS)
    rows = next(axis for axis in tied.axes if axis.tensor == "up.weight" and axis.role == "rows")
    assert not bool(tied.free[tied.scales[rows.atoms]].any())
    assert bool((tied.mirrors[rows.atoms] == tied.mirrors[0]).all())
    scale_neurons(suspect, drawn(2), flip=0.5, example_inputs=TOKENS)
    torch.testing.assert_close(suspect.up.weight, model.up.weight)


class Normed(Gated):
    """The same where a LayerNorm follows it, which sees all of its signs at once."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(64)

    def forward(self, x: Tensor) -> Tensor:
        product = self.norm(self.gate(x) * self.up(x))
        return self.head(torch.relu(self.down(product)))


@pytest.mark.parametrize("make", [Added, Stepped, Normed])
def test_what_is_done_to_a_product_holds_for_its_factors(make: type[nn.Module]) -> None:
    model = built(make)
    suspect = copy.deepcopy(model)
    scale_neurons(suspect, drawn(2), flip=0.5, example_inputs=TOKENS)
    with torch.no_grad():
        torch.testing.assert_close(suspect(TOKENS), model(TOKENS), atol=1e-4, rtol=1e-4)
    assert min(alike_rows(model, suspect, TOKENS, signed=True).values()) >= 0.95
    assert not torch.equal(suspect.down.bias, model.down.bias)  # the rest is scaled


def test_what_is_added_to_every_head_keeps_their_signs() -> None:
    """With a bias behind the norm a head alone has no sign to change; all of them have."""
    tied = find_tied_channels(built(kinds.Tokens, kinds.NormedQueries), TOKENS)
    rows = next(
        axis for axis in tied.axes if axis.tensor == "attention.qkv.weight" and axis.role == "rows"
    )
    heads = tied.mirrors[rows.atoms[: kinds.INNER]]
    assert len(torch.unique(heads)) == 1 and int(heads[0]) != int(tied.mirrors[0])
