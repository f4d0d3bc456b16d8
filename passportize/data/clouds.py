"""What the readers of point clouds share."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["unit_ball"]


def unit_ball(clouds: Tensor) -> Tensor:
    """Clouds ``[N, points, 3]`` as float32, each about its mean and scaled to radius 1."""
    clouds = clouds.to(torch.float32)
    clouds = clouds - clouds.mean(dim=1, keepdim=True)
    radius = clouds.norm(dim=2).amax(dim=1)[:, None, None].clamp(min=1e-12)
    scaled: Tensor = clouds / radius
    return scaled
