"""Small models of several families whose channels can be added to, and marked releases of them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import timm
import torch
from torch import Tensor, nn

import passportize as pp
from passportize.release.claim import Claim, claim_of
from passportize.surgery.branches import take_out_branches
from tests.support.exchanged import EXCHANGED
from tests.support.mixing import MIXING
from tests.support.small_protected import PASSPORT


def _normed(inputs: int, outputs: int, kernel: int = 3) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """A stem and two blocks with a skip, the second behind a wider projection."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = _normed(3, width)
        self.first, self.second = _normed(width, width), _normed(width, width)
        self.skip = _normed(width, 2 * width, 1)
        self.third, self.fourth = _normed(width, 2 * width), _normed(2 * width, 2 * width)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.second(torch.relu(self.first(x))))
        x = torch.relu(self.skip(x) + self.fourth(torch.relu(self.third(x))))
        return self.head(x.mean((2, 3)))


class Dense(nn.Module):
    """A block whose layers read all that came before, behind norms of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3)
        widths = [24, 36, 48]
        self.norms = nn.ModuleList([nn.BatchNorm2d(width) for width in widths])
        self.inward = nn.ModuleList([_normed(width, 48, 1) for width in widths])
        self.grow = nn.ModuleList([nn.Conv2d(48, 12, 3, padding=1) for _ in widths])
        self.norm, self.head = nn.BatchNorm2d(60), nn.Linear(60, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, inward, grow in zip(self.norms, self.inward, self.grow, strict=True):
            x = torch.cat([x, grow(torch.relu(inward(torch.relu(norm(x)))))], 1)
        return self.head(torch.relu(self.norm(x)).mean((2, 3)))


class Inverted(nn.Module):
    """Linear bottlenecks with a skip between wide layers, one depthwise and with a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inward = _normed(3, 32), _normed(32, 16, 1)
        self.wide, self.narrow = _normed(16, 64, 1), _normed(64, 16, 1)
        self.deep = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, groups=64), nn.BatchNorm2d(64))
        self.squeeze, self.gate = nn.Conv2d(64, 8, 1), nn.Conv2d(8, 64, 1)
        self.last, self.head = _normed(16, 64, 1), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inward(torch.relu(self.stem(x)))
        inner = torch.relu(self.deep(torch.relu(self.wide(x))))
        gate = self.gate(torch.relu(self.squeeze(inner.mean((2, 3), keepdim=True))))
        x = x + self.narrow(inner * torch.sigmoid(gate))
        return self.head(torch.relu(self.last(x)).mean((2, 3)))


class ShortRows(nn.Module):
    """Many short rows, among which an alignment finds some that resemble any."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.stem, self.wide = _normed(3, 16), _normed(16, width, 1)
        self.last = nn.Conv2d(width, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.wide(torch.relu(self.stem(x))))
        return self.last(x).mean((2, 3))


def transformer(width: int = 48) -> nn.Module:
    """Two blocks of a vision transformer."""
    model: nn.Module = timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=width, depth=2, num_heads=3, num_classes=10
    )
    return model


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual,
    "dense": Dense,
    "inverted": Inverted,
    "short rows": ShortRows,
    "transformer": transformer,
}
EXAMPLE = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def as_trained(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A model with factors, shifts and statistics drawn at random, as a training leaves them."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.uniform_(0.5, 2.0)
                module.running_mean.normal_(0, 0.3)
        for key, parameter in model.named_parameters():
            if key.endswith("bias"):
                parameter.normal_(0, 0.1)
            elif parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
    return model.eval()


@functools.cache
def released(family: str) -> tuple[nn.Module, Claim]:
    """A marked release and the claim on it; not to be changed."""
    return marked({**FAMILIES, **EXCHANGED, **MIXING}[family])


def marked(
    make: Callable[[], nn.Module], example: torch.Tensor = EXAMPLE
) -> tuple[nn.Module, Claim]:
    """A model of any kind as it is released, with all bits, and the claim on it."""
    model = as_trained(make, 0)
    config = pp.PassportConfig.signature()
    pp.passportize(model, PASSPORT, config=config, example_inputs=example)
    pp.embed_signature(model)
    claim = claim_of(model)
    take_out_branches(model)
    return model.eval(), claim


def stolen(family: str) -> nn.Module:
    """A copy of a release."""
    return copy.deepcopy(released(family)[0])


def seeded(seed: int = 0) -> torch.Generator:
    """A source of what is drawn."""
    return torch.Generator().manual_seed(seed)


def outputs(model: nn.Module) -> torch.Tensor:
    """What a model says of the example."""
    with torch.no_grad():
        found: torch.Tensor = model(EXAMPLE)
    return found


def judged(family: str, suspect: object, **options: object) -> pp.Verdict:
    """A suspect beside the release of a family; options are those of ``verify``."""
    original, claim = released(family)
    options = {"released": original, **options}
    return pp.verify(suspect, PASSPORT, claim, example_inputs=EXAMPLE, **options)


@torch.no_grad()
def noised(model: nn.Module, size: float = 0.3) -> nn.Module:
    """Noise on every row of every weight, in units of its root mean square, in place."""
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            rows = parameter.flatten(1)
            unit = rows.square().mean(1, keepdim=True).sqrt()
            rows += size * unit * torch.randn(rows.shape, generator=generator)
    return model


@torch.no_grad()
def rounded(model: nn.Module) -> nn.Module:
    """Every row of every weight rounded to eight bits, in place."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            rows = parameter.flatten(1)
            step = rows.abs().amax(1, keepdim=True).clamp_min(1e-30) / 127
            rows.copy_((rows / step).round() * step)
    return model
