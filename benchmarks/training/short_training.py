"""A short training with small batches, plain or joint, for benchmarks that compare presets."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import passportize as pp

BATCH = 32
Augment = Callable[[Tensor, torch.Generator], Tensor]


def train(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    augment: Augment,
    epochs: int,
    seed: int,
    joint: bool,
) -> None:
    """Adam with a one-cycle schedule; batches and what is done to them follow from the seed."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    steps = epochs * (len(inputs) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(inputs), generator=generator)
        for index in order.split(BATCH)[: len(inputs) // BATCH]:
            x, y = augment(inputs[index], generator), labels[index]
            loss = (
                pp.joint_loss(model, x, y, F.cross_entropy).total
                if joint
                else F.cross_entropy(model(x), y)
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
