"""Read the solids of the Debian package ``kicad-packages3d`` once and keep their point clouds."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import tarfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from passportize.data.vrml import read_triangles, sample_surface, triangle_areas
from passportize.data.vrml_nodes import VrmlError
from passportize.errors import DatasetError, InvalidArgument
from passportize.utils.files import write_atomically

__all__ = ["CACHE_POINTS", "CloudCache", "build_kicad_cache", "cache_folder", "load_kicad_cache"]

CACHE_POINTS = 1024
"""Points kept per solid."""
_HOW_TO_GET = (
    "get the Debian package with 'apt-get download kicad-packages3d' (379 MB) and pass the .deb "
    "file, or pass a folder with its unpacked *.3dshapes folders"
)
_FORMAT = "passportize kicad clouds 1"
_PACKAGE_FILES = 6227  # solids in version 6.0.10-1, an estimate for the progress of a .deb

_Sampled = tuple[NDArray[np.int16], float, NDArray[np.float32], float]


@dataclass(frozen=True)
class CloudCache:
    """Point clouds of all readable solids.

    Attributes:
        points: int16 ``[M, 1024, 3]``; times ``scale`` they are millimetres / 2.54, the unit of
            the files, with the middle of the solid at the origin.
        scale: float32 ``[M]``.
        extents: Size along each axis, float32 ``[M, 3]``.
        areas: Area of the surface, float32 ``[M]``.
        names: ``"folder/model"`` of each solid, sorted.
        failures: ``(name, reason)`` of each file that could not be read.
    """

    points: Tensor
    scale: Tensor
    extents: Tensor
    areas: Tensor
    names: tuple[str, ...]
    failures: tuple[tuple[str, str], ...]


def cache_folder() -> Path:
    """The user's cache folder: ``$XDG_CACHE_HOME/passportize`` or ``~/.cache/passportize``."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says to ignore a relative path.
    root = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    return root / "passportize"


def build_kicad_cache(
    source: str | os.PathLike[str],
    target: Path,
    *,
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> CloudCache:
    """Sample 1,024 points on each solid and write them to one file.

    Files that cannot be read are left out, counted and named in :attr:`CloudCache.failures`. The
    file appears under its name only when it is complete.

    Args:
        source: The ``.deb`` file (read as a stream, nothing is unpacked to disk), or a folder
            that holds the unpacked ``*.3dshapes`` folders somewhere below it.
        target: The file to write.
        processes: Worker processes; 1 reads in this process.
        progress: Called with the number of files done and their total.

    Returns:
        What was written.

    Raises:
        DatasetError: ``source`` does not exist or holds no readable ``.wrl`` file.
        InvalidArgument: ``processes`` is below 1.
    """
    if processes < 1:
        raise InvalidArgument(f"processes={processes}: use 1 or more")
    root = Path(source)
    files: Iterator[tuple[str, bytes | Path]]
    if root.is_dir():
        paths = sorted(root.rglob("*.3dshapes/*.wrl"))
        total, files = len(paths), ((_name(path.as_posix()), path) for path in paths)
    elif root.is_file():
        total, files = _PACKAGE_FILES, _package(root)
    else:
        raise DatasetError(f"{root} does not exist; {_HOW_TO_GET}")
    sampled: dict[str, _Sampled] = {}
    failures: list[tuple[str, str]] = []
    for done, (name, result) in enumerate(_sample_all(files, processes), start=1):
        if isinstance(result, str):
            failures.append((name, result))
        else:
            sampled[name] = result
        if progress is not None:
            progress(done, max(done, total))
    if not sampled:
        raise DatasetError(
            f"{root} holds no readable *.3dshapes/*.wrl file "
            f"({len(failures)} could not be read); {_HOW_TO_GET}"
        )
    names = tuple(sorted(sampled))
    cache = CloudCache(
        torch.from_numpy(np.stack([sampled[name][0] for name in names])),
        torch.tensor([sampled[name][1] for name in names]),
        torch.from_numpy(np.stack([sampled[name][2] for name in names])),
        torch.tensor([sampled[name][3] for name in names]),
        names,
        tuple(sorted(failures)),
    )
    _write(cache, target)
    return cache


def load_kicad_cache(path: Path) -> CloudCache:
    """Read what :func:`build_kicad_cache` wrote.

    Raises:
        DatasetError: The file is missing, damaged or of another version.
    """
    if not path.is_file():
        raise DatasetError(f"{path} does not exist; {_HOW_TO_GET}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if metadata.get("format") != _FORMAT:
            raise DatasetError(f"{path} is no cache of this version; delete it and build it again")
        cache = CloudCache(
            tensors["points"],
            tensors["scale"],
            tensors["extents"],
            tensors["areas"],
            tuple(json.loads(metadata["names"])),
            tuple((name, reason) for name, reason in json.loads(metadata["failures"])),
        )
    except (SafetensorError, KeyError, ValueError) as error:
        raise DatasetError(f"{path} is damaged; delete it and build it again") from error
    if cache.points.shape != (len(cache.names), CACHE_POINTS, 3):
        raise DatasetError(f"{path} is damaged; delete it and build it again")
    return cache


def _write(cache: CloudCache, target: Path) -> None:
    data = save(
        {
            "points": cache.points,
            "scale": cache.scale,
            "extents": cache.extents,
            "areas": cache.areas,
        },
        {
            "format": _FORMAT,
            "names": json.dumps(cache.names),
            "failures": json.dumps(cache.failures),
        },
    )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatasetError(f"{target.parent} cannot be made: {error.strerror}") from error
    write_atomically(target, data, error=DatasetError)


def _name(path: str) -> str:
    """``".../Package_SO.3dshapes/SO-8.wrl"`` -> ``"Package_SO/SO-8"``."""
    parts = PurePosixPath(path)
    return f"{parts.parent.name.removesuffix('.3dshapes')}/{parts.stem}"


def _package(deb: Path) -> Iterator[tuple[str, bytes | Path]]:
    """Streams the ``.wrl`` files out of a Debian package."""
    command = ["dpkg-deb", "--fsys-tarfile", str(deb)]
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise DatasetError(
            f"{deb} needs the program dpkg-deb to be read; unpack it elsewhere and pass the folder"
        ) from error
    with process:
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    if re.search(r"\.3dshapes/[^/]+\.wrl\Z", member.name) and member.isfile():
                        content = archive.extractfile(member)
                        if content is not None:
                            yield _name(member.name), content.read()
        except tarfile.TarError as error:
            raise DatasetError(f"{deb} is no readable Debian package: {error}") from error
        finally:
            process.kill()


def _sample_all(
    files: Iterator[tuple[str, bytes | Path]], processes: int
) -> Iterator[tuple[str, _Sampled | str]]:
    if processes == 1:
        for name, content in files:
            yield name, _sample(name, content)
        return
    # Spawned, not forked: a fork of a process with torch's threads can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        waiting: deque[tuple[str, Future[_Sampled | str]]] = deque()
        for name, content in files:
            waiting.append((name, pool.submit(_sample, name, content)))
            # A bounded queue keeps the package from piling up in memory.
            while len(waiting) > 8 * processes:
                done, future = waiting.popleft()
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()


def _sample(name: str, content: bytes | Path) -> _Sampled | str:
    """Points, scale and extents of one solid, or why it cannot be read."""
    try:
        triangles = read_triangles(content.read_bytes() if isinstance(content, Path) else content)
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        points = sample_surface(triangles, CACHE_POINTS, rng)
    except (VrmlError, OSError) as error:
        return str(error)
    corners = triangles.reshape(-1, 3)
    low, high = corners.min(axis=0), corners.max(axis=0)
    points = points - (low + high) / 2
    scale = float(np.abs(points).max()) / 32767
    if scale == 0.0:
        return "the solid is a single point"
    extents = (high - low).astype(np.float32)
    area = float(triangle_areas(triangles).sum())
    return np.round(points / scale).astype(np.int16), scale, extents, area
