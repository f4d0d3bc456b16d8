"""Surfaces of simple solids that points can be drawn from, uniformly by area."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Draw", "Surface"]

Surface = tuple[float, Callable[[int, torch.Generator], Tensor]]
"""An area, and a function that draws points ``[n, 3]`` from the surface."""


class Draw:
    """Random proportions and primitive surfaces, all from one generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def between(self, low: float, high: float) -> float:
        """A uniform random number."""
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def box(self, x: float, y: float, z: float, at: tuple[float, float, float]) -> Surface:
        """A box with the given edge lengths; ``at`` is its middle."""
        faces = torch.tensor([y * z, y * z, x * z, x * z, x * y, x * y])

        def points(count: int, generator: torch.Generator) -> Tensor:
            cloud = torch.rand(count, 3, generator=generator) - 0.5
            face = torch.multinomial(faces, count, replacement=True, generator=generator)
            cloud[torch.arange(count), face // 2] = (face % 2).float() - 0.5
            return cloud * torch.tensor([x, y, z]) + torch.tensor(at)

        return float(faces.sum()), points

    def frustum(
        self,
        bottom: float,
        top: float,
        height: float,
        at: tuple[float, float, float],
        *,
        lids: tuple[bool, bool] = (True, True),
    ) -> Surface:
        """A cylinder or cone along z with radii ``bottom`` and ``top``; ``at`` is its middle."""
        slant = math.hypot(height, bottom - top)
        areas = torch.tensor(
            [
                math.pi * (bottom + top) * slant,
                math.pi * bottom**2 * lids[0],
                math.pi * top**2 * lids[1],
            ]
        )

        def points(count: int, generator: torch.Generator) -> Tensor:
            part = torch.multinomial(areas, count, replacement=True, generator=generator)
            u, angle = torch.rand(2, count, generator=generator)
            # On the side, the radius is distributed in proportion to itself.
            low, high = sorted((bottom, top))
            radius = torch.sqrt(low**2 + u * (high**2 - low**2))
            along = (radius - bottom) / (top - bottom) if abs(top - bottom) > 1e-6 else u
            if abs(top - bottom) <= 1e-6:
                radius = torch.full_like(u, bottom)
            radius = torch.where(part == 1, bottom * torch.sqrt(u), radius)
            radius = torch.where(part == 2, top * torch.sqrt(u), radius)
            along = torch.where(part == 1, 0.0, torch.where(part == 2, 1.0, along))
            turn = 2 * math.pi * angle
            z = (along - 0.5) * height
            cloud = torch.stack([radius * torch.cos(turn), radius * torch.sin(turn), z], dim=1)
            return cloud + torch.tensor(at)

        return float(areas.sum()), points

    def ellipsoid(self, x: float, y: float, z: float, at: tuple[float, float, float]) -> Surface:
        """An ellipsoid with the given half axes, points uniform before it is stretched."""

        def points(count: int, generator: torch.Generator) -> Tensor:
            cloud = torch.randn(count, 3, generator=generator)
            cloud = cloud / cloud.norm(dim=1, keepdim=True).clamp(min=1e-6)
            moved: Tensor = cloud * torch.tensor([x, y, z]) + torch.tensor(at)
            return moved

        return 4 * math.pi * ((x * y + y * z + x * z) / 3), points

    def ring(
        self, radius: float, tube: float, at: tuple[float, float, float], *, upright: bool = False
    ) -> Surface:
        """A torus around z, or around y where ``upright``."""

        def points(count: int, generator: torch.Generator) -> Tensor:
            u, v = torch.rand(2, count, generator=generator) * (2 * math.pi)
            out = radius + tube * torch.cos(v)
            axes = [out * torch.cos(u), out * torch.sin(u), tube * torch.sin(v)]
            if upright:
                axes = [axes[0], axes[2], axes[1]]
            return torch.stack(axes, dim=1) + torch.tensor(at)

        return 4 * math.pi**2 * radius * tube, points
