"""KiCadShapes: labelled point clouds of real solids, the parts of electronic circuits."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from passportize.data.kicad_cache import (
    CACHE_POINTS,
    CloudCache,
    build_kicad_cache,
    cache_folder,
    load_kicad_cache,
)
from passportize.data.splits import family_split, select_split, stratified_split
from passportize.errors import DatasetError, InvalidArgument

__all__ = ["KiCadShapes"]

# Folders that hold one kind of part in several pitches or series are one class.
_MERGED = re.compile(r"(Connector_PinHeader|Connector_PinSocket|Connector_Phoenix)_.+")


@dataclass(frozen=True)
class KiCadShapes:
    """Point clouds of the solids in the KiCad library, one class per kind of part.

    Source: the 3D models of the KiCad libraries, by the KiCad community (among them the authors
    of kicad StepUp and the contributors named in the package), Debian package
    ``kicad-packages3d``, https://kicad.github.io/packages3d. Licence: CC-BY-SA 4.0 with an
    exception for electronic designs (some files GPL-3+ or other terms; see the package's
    ``copyright`` file). The exception does not cover passing the library or parts of it on as a
    collection, so the clouds are made on the user's machine and are not distributed.

    Attributes:
        points: Clouds in the pose as modelled, centred and scaled into the unit ball, float32
            ``[N, P, 3]``.
        labels: Class of each cloud, int64 ``[N]``.
        classes: Name of each class.
        names: ``"folder/model"`` of each cloud.
    """

    points: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    names: tuple[str, ...]

    @classmethod
    def load(
        cls,
        root: str | os.PathLike[str] | None = None,
        *,
        points: int = CACHE_POINTS,
        at_least: int = 40,
        at_most: int | None = 150,
        cache: str | os.PathLike[str] | None = None,
        processes: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> KiCadShapes:
        """Read the clouds from the cache; build the cache first where there is none.

        Solids of one class with the same extents and area are kept once. Classes with fewer than
        ``at_least`` solids are left out; of larger ones ``at_most`` are drawn, always the same.

        Args:
            root: The Debian package (``.deb``) or a folder with its unpacked ``*.3dshapes``
                folders. Needed only while there is no cache.
            points: Points per cloud, at most 1,024.
            at_least: Smallest class that is kept.
            at_most: Largest number of solids per class; None for all.
            cache: Cache file; by default ``kicad-shapes-1.safetensors`` in the user's cache
                folder (``$XDG_CACHE_HOME/passportize`` or ``~/.cache/passportize``).
            processes: Worker processes that build the cache.
            progress: Called with files done and their total while the cache is built.

        Raises:
            DatasetError: There is neither a cache nor a readable ``root``, the cache is damaged,
                or no class is large enough.
            InvalidArgument: A number is out of range.
        """
        if not 1 <= points <= CACHE_POINTS:
            raise InvalidArgument(f"points={points}: use 1..{CACHE_POINTS}")
        if at_least < 2 or (at_most is not None and at_most < 2):
            raise InvalidArgument("at_least and at_most: a class needs 2 solids or more")
        default = cache_folder() / "kicad-shapes-1.safetensors"
        target = default if cache is None else Path(cache)
        if target.is_file() or root is None:
            clouds = load_kicad_cache(target)
        else:
            clouds = build_kicad_cache(root, target, processes=processes, progress=progress)
        chosen, classes = _choose(clouds, at_least, at_most)
        if not classes:
            raise DatasetError(
                f"no class of {target} has {at_least} solids or more: lower at_least, or delete "
                "the cache and build it from the whole package"
            )
        index = torch.tensor([item for item, _ in chosen])
        sampled = clouds.points[index, :points].to(torch.float32)
        radius = sampled.norm(dim=2).amax(dim=1).clamp(min=1e-12)
        return cls(
            sampled / radius[:, None, None],
            torch.tensor([label for _, label in chosen]),
            classes,
            tuple(clouds.names[item] for item, _ in chosen),
        )

    @property
    def families(self) -> tuple[str, ...]:
        """Name of each cloud without its digits: what siblings that differ in a number share."""
        return tuple(re.sub(r"\d+", "", name) for name in self.names)

    def split(
        self, split: str = "train", *, by: str = "random", seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Clouds ``[n, P, 3]`` and labels ``[n]`` of one part, 80 % train and 20 % test per class.

        Many solids differ from a sibling in one number only, the pins of a connector say. A
        random split tests on siblings of what was trained on; a split by family does not.

        Args:
            split: ``"train"`` or ``"test"``.
            by: ``"random"`` or ``"family"``.
            seed: Seed of the split.

        Raises:
            InvalidArgument: ``split`` or ``by`` is none of these.
        """
        if by == "random":
            parts = stratified_split(self.labels, seed=seed)
        elif by == "family":
            parts = family_split(self.labels, self.families, seed=seed)
        else:
            raise InvalidArgument(f"by={by!r}: use 'random' or 'family'")
        index = select_split(split, *parts)
        return self.points[index], self.labels[index]


def _choose(
    clouds: CloudCache, at_least: int, at_most: int | None
) -> tuple[list[tuple[int, int]], tuple[str, ...]]:
    """Indices with their labels, and the names of the classes."""
    members: dict[str, dict[tuple[float, ...], int]] = {}
    # Four digits, in the unit of the files: what differs by less is the same solid exported twice.
    measures = torch.cat([clouds.extents, clouds.areas.unsqueeze(1)], dim=1).double()
    keys = measures.mul(1e4).round().tolist()
    for index, name in enumerate(clouds.names):
        kind = name.partition("/")[0]
        merged = _MERGED.fullmatch(kind)
        found = members.setdefault(merged.group(1) if merged else kind, {})
        found.setdefault(tuple(keys[index]), index)
    classes = tuple(sorted(kind for kind, found in members.items() if len(found) >= at_least))
    generator = torch.Generator().manual_seed(0)
    chosen: list[tuple[int, int]] = []
    for label, kind in enumerate(classes):
        found_here = torch.tensor(sorted(members[kind].values()))
        order = torch.randperm(len(found_here), generator=generator)[:at_most]
        chosen.extend((int(index), label) for index in found_here[order].sort().values)
    return chosen, classes
