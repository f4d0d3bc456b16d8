"""Surfaces of VRML 2.0 (VRML97) files: indexed face sets under nested transforms, in numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from passportize.data.vrml_nodes import MAX_DEPTH, Node, Parser, VrmlError

__all__ = ["VrmlError", "read_triangles", "sample_surface", "triangle_areas"]

_GROUPS = {"Anchor", "Billboard", "Collision", "Group", "Transform"}
_WITHOUT_SURFACE = {"IndexedLineSet", "PointSet", "Text"}

_Floats = NDArray[np.float64]


def read_triangles(data: bytes) -> _Floats:
    """Read all faces of a VRML 2.0 scene in world coordinates.

    Follows ISO/IEC 14772-1:1997 for ``Shape``, ``IndexedFaceSet``, grouping nodes, ``Transform``,
    ``Switch``, ``LOD`` and ``DEF`` / ``USE``. Polygons are cut into fans, which is exact for
    convex ones. Lines, points and text have no surface and are left out.

    Args:
        data: Content of the file.

    Returns:
        Corner positions, float64 ``[triangles, 3, 3]``; empty where the scene has no face.

    Raises:
        VrmlError: The file is no VRML 2.0, is damaged, or holds a shape that is not read
            (``Box``, ``Extrusion``, ``Inline``, ``PROTO``, ...).
    """
    if not data.startswith(b"#VRML V2.0"):
        raise VrmlError("no VRML 2.0 file: the first line is not '#VRML V2.0 ...'")
    parser = Parser(data)
    parts: list[_Floats] = []
    for node in parser.scene():
        _collect(node, np.eye(4), parts, 0)
    return np.concatenate(parts) if parts else np.empty((0, 3, 3))


def triangle_areas(triangles: _Floats) -> _Floats:
    """Areas ``[T]`` of triangles ``[T, 3, 3]``."""
    edges = triangles[:, 1:] - triangles[:, :1]
    areas: _Floats = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1) / 2
    return areas


def sample_surface(triangles: _Floats, count: int, rng: np.random.Generator) -> _Floats:
    """Draw points from a surface, uniformly by area.

    Args:
        triangles: Corner positions ``[T, 3, 3]``.
        count: Number of points.
        rng: Source of randomness.

    Returns:
        Points ``[count, 3]``.

    Raises:
        VrmlError: The surface has no area.
    """
    edges = triangles[:, 1:] - triangles[:, :1]
    total = np.cumsum(triangle_areas(triangles))
    if not len(total) or not math.isfinite(total[-1]) or total[-1] <= 0:
        raise VrmlError("the surface has no area")
    chosen = np.searchsorted(total, rng.random(count) * total[-1], side="right")
    chosen = np.minimum(chosen, len(total) - 1)
    # Uniform in a triangle: sqrt(r1) as the distance from the first corner (Osada et al. 2002).
    root = np.sqrt(rng.random((count, 1)))
    along = rng.random((count, 1))
    moved: _Floats = triangles[chosen, 0] + root * (
        (1 - along) * edges[chosen, 0] + along * edges[chosen, 1]
    )
    return moved


def _collect(node: Node, matrix: _Floats, parts: list[_Floats], depth: int) -> None:
    if depth > MAX_DEPTH:
        raise VrmlError(f"nodes are nested more than {MAX_DEPTH} deep")
    kind, fields = node.kind, node.fields
    if kind in ("Inline", "Extrusion", "ElevationGrid"):
        raise VrmlError(f"{kind} is not read")
    if kind == "Shape":
        geometry = fields.get("geometry")
        if not isinstance(geometry, Node) or geometry.kind in _WITHOUT_SURFACE:
            return
        if geometry.kind != "IndexedFaceSet":
            raise VrmlError(f"{geometry.kind} is not read")
        corners = _faces(geometry)
        parts.append(corners @ matrix[:3, :3].T + matrix[:3, 3])
        return
    children: list[Node] = []
    if kind in _GROUPS:
        children = _nodes(fields.get("children"))
    elif kind == "Switch":
        choice = _switch(fields.get("whichChoice"))
        offered = _nodes(fields.get("choice"))
        children = [offered[choice]] if 0 <= choice < len(offered) else []
    elif kind == "LOD":
        children = _nodes(fields.get("level"))[:1]
    if kind == "Transform":
        matrix = matrix @ _transform(node)
    for child in children:
        _collect(child, matrix, parts, depth + 1)


def _nodes(value: Any) -> list[Node]:
    values = value if isinstance(value, list) else [value]
    return [item for item in values if isinstance(item, Node)]


def _switch(value: Any) -> int:
    return int(value[0]) if isinstance(value, np.ndarray) and value.size else -1


def _vector(fields: dict[str, Any], name: str) -> _Floats:
    value = fields.get(name, [])
    if isinstance(value, np.ndarray) or value == []:
        return np.asarray(value, dtype=np.float64)
    raise VrmlError(f"{name} is no list of numbers")


def _faces(geometry: Node) -> _Floats:
    coordinates = geometry.fields.get("coord")
    points = _vector(coordinates.fields if isinstance(coordinates, Node) else {}, "point")
    index = _vector(geometry.fields, "coordIndex").astype(np.int64)
    if points.size % 3:
        raise VrmlError(f"{points.size} numbers are no list of points")
    points = points.reshape(-1, 3)
    if not np.isfinite(points).all():
        raise VrmlError("a point is not finite")
    if index.size and (index.max() >= len(points) or index.min() < -1):
        raise VrmlError(f"a face names a point outside 0..{len(points) - 1}")
    if index.size and index[-1] != -1:
        index = np.append(index, -1)
    ends = np.flatnonzero(index == -1)
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    lengths = ends - starts
    triangles = [np.empty((0, 3), dtype=np.int64)]
    for length in np.unique(lengths[lengths >= 3]):
        polygons = index[starts[lengths == length][:, None] + np.arange(length)]
        for corner in range(1, int(length) - 1):
            triangles.append(polygons[:, [0, corner, corner + 1]])
    return points[np.concatenate(triangles)]


def _transform(node: Node) -> _Floats:
    """The matrix ``T C R SR S -SR -C`` of a Transform node (ISO/IEC 14772-1, 6.52)."""

    def vector(name: str, default: tuple[float, ...]) -> _Floats:
        value = _vector(node.fields, name) if name in node.fields else np.array(default)
        if value.shape != (len(default),):
            raise VrmlError(f"{name} needs {len(default)} numbers")
        return value

    center = vector("center", (0.0, 0.0, 0.0))
    orientation = vector("scaleOrientation", (0.0, 0.0, 1.0, 0.0))
    tilt = _rotation(orientation)
    linear = (
        _rotation(vector("rotation", (0.0, 0.0, 1.0, 0.0)))
        @ tilt
        @ np.diag(vector("scale", (1.0, 1.0, 1.0)))
        @ tilt.T
    )
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = vector("translation", (0.0, 0.0, 0.0)) + center - linear @ center
    return matrix


def _rotation(axis_angle: _Floats) -> _Floats:
    axis, angle = axis_angle[:3], float(axis_angle[3])
    length = float(np.linalg.norm(axis))
    if length == 0.0 or angle == 0.0:
        return np.eye(3)
    x, y, z = axis / length
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    # Rodrigues' formula.
    rotated: _Floats = np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * (cross @ cross)
    return rotated
