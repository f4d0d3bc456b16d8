"""All sets by name, in three parts each, from a folder of the user's or from where they lie."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from passportize.data.digits import load_digits_images
from passportize.data.fashion_mnist import DEBIAN_FASHION_MNIST, load_fashion_mnist
from passportize.data.kicad import KiCadShapes
from passportize.data.modelnet import load_modelnet
from passportize.data.parts import Part, Parts
from passportize.data.pictures import load_caltech, load_cifar
from passportize.data.shapenet import load_shapenet
from passportize.data.shapes import generate_shapes
from passportize.errors import InvalidArgument

__all__ = ["FASHION_FOLDER", "SETS", "NamedSet", "load_parts"]

FASHION_FOLDER = "FashionMNIST/raw"
"""Where torchvision puts the files of Fashion-MNIST, in the folder that it is given."""

Read = Callable[[Path | None, int], tuple[Part, Part]]
"""Train and test part, given a folder and the points per cloud."""


@dataclass(frozen=True)
class NamedSet:
    """A set of the bench.

    Attributes:
        title: Its name in tables.
        kind: ``"images"`` or ``"clouds"``.
        read: Returns the train and the test part.
        classes: Those that are kept, numbered anew; None for all.
    """

    title: str
    kind: str
    read: Read
    classes: tuple[int, ...] | None = None


def load_parts(
    name: str, root: str | os.PathLike[str] | None = None, *, points: int = 1024
) -> Parts:
    """Read a set and take a tenth of its train part out to choose checkpoints by.

    Args:
        name: One of :data:`SETS`.
        root: Where the set lies; None for where its package puts it, if there is one.
        points: Points per cloud.

    Returns:
        Images standardised by the train part, clouds in the unit ball.

    Raises:
        DatasetError: The set is not there; the message says how to get it.
        InvalidArgument: There is no such set, or it needs ``root``.
        MissingExtra: What reads it is not installed.
    """
    if name not in SETS:
        raise InvalidArgument(f"there is no set {name!r}; use one of {', '.join(sorted(SETS))}")
    named = SETS[name]
    train, test = named.read(None if root is None else Path(root), points)
    parts = Parts.hold_out(named.title, train, test)
    if named.kind == "images":
        parts = parts.standardised()
    return parts if named.classes is None else parts.of_classes(named.classes, named.title)


def _both(load: Callable[..., Part], default: str, *, clouds: bool = False, **options: Any) -> Read:
    """Train and test part of a loader that takes a folder, a split and options."""

    def read(root: Path | None, points: int) -> tuple[Part, Part]:
        where = Path(default) if root is None else root
        given = {**options, "points": points} if clouds else options
        return load(where, "train", **given), load(where, "test", **given)

    return read


def _fashion(root: Path, split: str) -> Part:
    inner = root / FASHION_FOLDER
    return load_fashion_mnist(split, inner if inner.is_dir() else root)


def _digits(root: Path | None, points: int) -> tuple[Part, Part]:
    return load_digits_images("train"), load_digits_images("test")


def _kicad(root: Path | None, points: int) -> tuple[Part, Part]:
    shapes = KiCadShapes.load(root, points=points)
    return shapes.split("train"), shapes.split("test")


def _shapes(root: Path | None, points: int) -> tuple[Part, Part]:
    return generate_shapes(40, points, seed=0), generate_shapes(20, points, seed=1)


_FASHION = _both(_fashion, DEBIAN_FASHION_MNIST)

SETS = {
    "cifar10": NamedSet("CIFAR-10", "images", _both(load_cifar, "data", classes=10)),
    "cifar100": NamedSet("CIFAR-100", "images", _both(load_cifar, "data", classes=100)),
    "caltech101": NamedSet("Caltech-101", "images", _both(load_caltech, "data", classes=101)),
    "caltech256": NamedSet("Caltech-256", "images", _both(load_caltech, "data", classes=256)),
    "fashion-mnist": NamedSet("Fashion-MNIST", "images", _FASHION),
    "fashion-mnist-0-4": NamedSet("Fashion-MNIST 0-4", "images", _FASHION, (0, 1, 2, 3, 4)),
    "fashion-mnist-5-9": NamedSet("Fashion-MNIST 5-9", "images", _FASHION, (5, 6, 7, 8, 9)),
    "digits": NamedSet("digits of scikit-learn", "images", _digits),
    "digits-0-4": NamedSet("digits 0-4", "images", _digits, (0, 1, 2, 3, 4)),
    "digits-5-9": NamedSet("digits 5-9", "images", _digits, (5, 6, 7, 8, 9)),
    "modelnet40": NamedSet(
        "ModelNet40", "clouds", _both(load_modelnet, "data", clouds=True, classes=40)
    ),
    "shapenet": NamedSet("ShapeNet", "clouds", _both(load_shapenet, "data", clouds=True)),
    "kicad": NamedSet("KiCadShapes", "clouds", _kicad),
    "shapes": NamedSet("generated shapes", "clouds", _shapes),
}
"""Every set, by the name that commands take. Where ``root`` is not given, those that no package
brings are looked for in ``./data``."""
