"""PointNet on ModelNet40, ShapeNet, KiCad's solids and generated shapes.

python -m benchmarks.bench.pointnet --budget cpu --root data
"""

from __future__ import annotations

import sys
from dataclasses import replace

from benchmarks.bench.accuracy import TABLE as ACCURACY
from benchmarks.bench.table import run

__all__ = ["TABLE"]

TABLE = replace(
    ACCURACY,
    name="pointnet",
    question="What does protection cost a PointNet?",
    about=(
        f"{ACCURACY.about} PointNet with both transform nets; clouds in the pose as modelled, "
        "shaken in training. KiCad's solids in random poses, and split by family, are in "
        "[point_cloud.md](point_cloud.md)."
    ),
    sets=("modelnet40", "shapenet", "kicad", "shapes"),
    networks=("pointnet",),
    norms=("bn",),
    smoke_sets=("shapes",),
    below=lambda rows: "",
)

if __name__ == "__main__":
    sys.exit(run(TABLE))
