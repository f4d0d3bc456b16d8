"""A public model and what is made of it."""

from __future__ import annotations

import copy
import functools

import torch
from torch import nn

from tests.support.small_protected import TinyNet, images


def fine_tuned(model: nn.Module, seed: int, steps: int = 30) -> nn.Module:
    """A copy after some plain training on half of the data."""
    model = copy.deepcopy(model).train()
    x, y = images("train")
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    for _ in range(steps):
        batch = torch.randperm(len(x) // 2, generator=generator)[:64]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    return model.eval()


@functools.cache
def public_base() -> nn.Module:
    """What somebody has published and everybody may use; not to be changed."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return fine_tuned(TinyNet(), 0, 120)
