"""A generator of labelled point clouds: parametric solids, any number, from a seed alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from passportize.data.surfaces import Draw, Surface
from passportize.errors import InvalidArgument

__all__ = ["SHAPE_CLASSES", "generate_shapes"]


def _legs(draw: Draw, x: float, y: float, height: float, top: float) -> list[Surface]:
    thick = draw.between(0.04, 0.1)
    corners = [(sx * (x - thick) / 2, sy * (y - thick) / 2) for sx in (-1, 1) for sy in (-1, 1)]
    return [draw.box(thick, thick, height, (cx, cy, top - height / 2)) for cx, cy in corners]


def _table(draw: Draw) -> list[Surface]:
    x, y, height = draw.between(0.8, 1.6), draw.between(0.6, 1.0), draw.between(0.5, 0.9)
    return [draw.box(x, y, 0.06, (0, 0, 0)), *_legs(draw, x, y, height, 0)]


def _chair(draw: Draw) -> list[Surface]:
    x, y, height = draw.between(0.4, 0.6), draw.between(0.4, 0.6), draw.between(0.4, 0.6)
    back = draw.between(0.4, 0.8)
    return [
        draw.box(x, y, 0.06, (0, 0, 0)),
        draw.box(x, 0.05, back, (0, y / 2, back / 2)),
        *_legs(draw, x, y, height, 0),
    ]


def _lamp(draw: Draw) -> list[Surface]:
    height, shade = draw.between(0.8, 1.6), draw.between(0.25, 0.5)
    wide = draw.between(0.25, 0.45)
    return [
        draw.frustum(0.25, 0.25, 0.05, (0, 0, 0)),
        draw.frustum(0.03, 0.03, height, (0, 0, height / 2)),
        draw.frustum(wide, wide * 0.6, shade, (0, 0, height), lids=(False, False)),
    ]


def _cup(draw: Draw) -> list[Surface]:
    wide, height = draw.between(0.3, 0.5), draw.between(0.6, 1.0)
    return [
        draw.frustum(wide, wide * draw.between(1.0, 1.3), height, (0, 0, 0), lids=(True, False)),
        draw.ring(height * 0.28, 0.05, (wide + height * 0.2, 0, 0), upright=True),
    ]


def _bottle(draw: Draw) -> list[Surface]:
    wide, body, neck = draw.between(0.2, 0.35), draw.between(0.6, 1.0), draw.between(0.2, 0.5)
    thin = wide * draw.between(0.25, 0.45)
    return [
        draw.frustum(wide, wide, body, (0, 0, 0), lids=(True, False)),
        draw.frustum(wide, thin, 0.2, (0, 0, body / 2 + 0.1), lids=(False, False)),
        draw.frustum(thin, thin, neck, (0, 0, body / 2 + 0.2 + neck / 2), lids=(False, True)),
    ]


def _i_beam(draw: Draw) -> list[Surface]:
    length, wide, high = draw.between(1.0, 2.0), draw.between(0.3, 0.5), draw.between(0.4, 0.8)
    return [
        draw.box(length, wide, 0.06, (0, 0, high / 2)),
        draw.box(length, wide, 0.06, (0, 0, -high / 2)),
        draw.box(length, 0.06, high, (0, 0, 0)),
    ]


def _angle(draw: Draw) -> list[Surface]:
    length, wide, high = draw.between(1.0, 2.0), draw.between(0.3, 0.6), draw.between(0.3, 0.6)
    return [
        draw.box(length, wide, 0.06, (0, wide / 2, 0)),
        draw.box(length, 0.06, high, (0, 0, high / 2)),
    ]


def _bolt(draw: Draw) -> list[Surface]:
    length, thin = draw.between(0.8, 1.6), draw.between(0.1, 0.2)
    head = thin * draw.between(1.6, 2.4)
    return [
        draw.frustum(thin, thin, length, (0, 0, 0)),
        draw.frustum(head, head, 0.2, (0, 0, length / 2 + 0.1)),
    ]


def _dumbbell(draw: Draw) -> list[Surface]:
    length, ball = draw.between(0.8, 1.4), draw.between(0.2, 0.4)
    return [
        draw.frustum(0.06, 0.06, length, (0, 0, 0)),
        draw.ellipsoid(ball, ball, ball, (0, 0, length / 2)),
        draw.ellipsoid(ball, ball, ball, (0, 0, -length / 2)),
    ]


def _stairs(draw: Draw) -> list[Surface]:
    steps, wide, rise = int(draw.between(3, 7)), draw.between(0.5, 1.0), draw.between(0.15, 0.25)
    return [
        draw.box(0.25, wide, rise * (i + 1), (0.25 * i, 0, rise * (i + 1) / 2))
        for i in range(steps)
    ]


_MAKERS: dict[str, Callable[[Draw], list[Surface]]] = {
    "angle": _angle,
    "ball": lambda draw: [
        draw.ellipsoid(draw.between(0.7, 1), draw.between(0.7, 1), draw.between(0.7, 1), (0, 0, 0))
    ],
    "bolt": _bolt,
    "bottle": _bottle,
    "box": lambda draw: [
        draw.box(draw.between(0.5, 1), draw.between(0.5, 1), draw.between(0.5, 1), (0, 0, 0))
    ],
    "chair": _chair,
    "cone": lambda draw: [
        draw.frustum(draw.between(0.3, 0.6), 0.0, draw.between(0.7, 1.4), (0, 0, 0))
    ],
    "cup": _cup,
    "cylinder": lambda draw: [
        draw.frustum(*(draw.between(0.3, 0.6),) * 2, draw.between(0.7, 1.4), (0, 0, 0))
    ],
    "dumbbell": _dumbbell,
    "i_beam": _i_beam,
    "lamp": _lamp,
    "ring": lambda draw: [draw.ring(draw.between(0.6, 1), draw.between(0.1, 0.3), (0, 0, 0))],
    "stairs": _stairs,
    "table": _table,
}

SHAPE_CLASSES: tuple[str, ...] = tuple(_MAKERS)
"""Names of the classes; a label is an index into it."""


def generate_shapes(
    per_class: int = 50, points: int = 256, *, seed: int = 0, noise: float = 0.01, turn: bool = True
) -> tuple[Tensor, Tensor]:
    """Generate point clouds of solids with random proportions, 15 classes.

    Meant for tests and examples: easy and synthetic, a small PointNet soon gets nearly all right.

    Args:
        per_class: Clouds per class.
        points: Points per cloud, drawn by area from the surfaces of the solid.
        seed: The same seed always gives the same clouds; train and test need different seeds.
        noise: Standard deviation of the noise on each coordinate.
        turn: Whether each cloud is turned by a random angle around z.

    Returns:
        Clouds, centred and scaled into the unit ball, float32 ``[per_class * 15, points, 3]``,
        in random order, and labels, int64 ``[per_class * 15]``.

    Raises:
        InvalidArgument: A number is below 1, or ``noise`` is negative.
    """
    if per_class < 1 or points < 1 or noise < 0:
        raise InvalidArgument("per_class and points must be 1 or more, noise 0 or more")
    generator = torch.Generator().manual_seed(seed)
    draw = Draw(generator)
    labels = torch.arange(len(_MAKERS)).repeat_interleave(per_class)
    labels = labels[torch.randperm(len(labels), generator=generator)]
    clouds = torch.stack(
        [_sample(_MAKERS[SHAPE_CLASSES[int(label)]](draw), points, generator) for label in labels]
    )
    if turn:
        angle = torch.rand(len(clouds), 1, generator=generator) * (2 * math.pi)
        x, y, z = clouds.unbind(dim=2)
        cos, sin = torch.cos(angle), torch.sin(angle)
        clouds = torch.stack([cos * x - sin * y, sin * x + cos * y, z], dim=2)
    clouds = clouds + noise * torch.randn(clouds.shape, generator=generator)
    clouds = clouds - clouds.mean(dim=1, keepdim=True)
    return clouds / clouds.norm(dim=2).amax(dim=1)[:, None, None].clamp(min=1e-6), labels


def _sample(surfaces: list[Surface], count: int, generator: torch.Generator) -> Tensor:
    areas = torch.tensor([area for area, _ in surfaces])
    owner = torch.multinomial(areas, count, replacement=True, generator=generator)
    sizes = torch.bincount(owner, minlength=len(surfaces)).tolist()
    parts = [make(size, generator) for (_, make), size in zip(surfaces, sizes, strict=True) if size]
    cloud = torch.cat(parts)
    cloud = cloud - cloud.mean(dim=0)
    # Proportions differ, sizes should not: the noise that follows is relative to the solid.
    scaled: Tensor = cloud / cloud.norm(dim=1).max().clamp(min=1e-6)
    return scaled
