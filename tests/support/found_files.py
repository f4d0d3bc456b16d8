"""A small marked model and its files, as they are found."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

import passportize as pp
from benchmarks.suspects.torch_makers import Maker
from passportize.release.claim import claim_of

OWNER = pp.Passport.generate("Acme", date="2026-01-31", secret=bytes(range(32)))
EXAMPLE = torch.zeros(2, 3, 8, 8)[:1]


class FoundNet(nn.Module):
    """Convolutions, one of them depthwise, and matrices, one of them square."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 5, padding=2, groups=16, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.conv = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(32)
        self.point = nn.Conv2d(32, 64, 1, bias=False)
        self.bn4 = nn.BatchNorm2d(64)
        self.square = nn.Linear(64, 64)
        self.norm = nn.LayerNorm(64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.stem(x)))
        x = torch.relu(self.bn2(self.depthwise(x)))
        x = torch.relu(self.bn3(self.conv(x)))
        x = self.bn4(self.point(x)).mean((2, 3))
        return self.head(self.norm(self.square(x)))


@functools.cache
def marked() -> tuple[nn.Module, pp.Claim]:
    """A plain model with every bit in, norms as after training, and its claim; leave it as is."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = pp.passportize(FoundNet(), OWNER, config=pp.PassportConfig.signature())
        pp.embed_signature(model)
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                layer.weight.data[::3] *= -1
                nn.init.uniform_(layer.running_var, 0.5, 2.0)
    claim = claim_of(model)
    pp.unpassportize(model)
    return model.eval().requires_grad_(False), claim


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Warnings, logs and prints of exporters are not ours."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable()
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def write(maker: Maker, folder: Path) -> Path:
    """The file that a maker makes of the marked model."""
    folder.mkdir(exist_ok=True)
    with quiet():
        return maker(marked()[0], EXAMPLE, folder)
