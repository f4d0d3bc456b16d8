"""What passports cost a PointNet on real solids, and how strong the evidence is.

Question: does the deployment branch classify as well as the plain model, what does the private
branch reach, and how many bits of evidence do the released weights carry? PointNet with both
transform nets on KiCadShapes, random and family split, three seeds, plain and every preset. Within
a seed all variants start from the same weights and see the same batches in the same poses.

    apt-get download kicad-packages3d              # 379 MB, read once
    python -m benchmarks.point_clouds.pointnet --root kicad-packages3d_6.0.10-1_all.deb
    python -m benchmarks.point_clouds.pointnet --smoke   # a minute, generated shapes, no files

A run that is interrupted goes on where it was: finished rows are in the CSV file.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import tempfile
import time
from pathlib import Path

import torch
from rich.progress import Progress
from torch import Tensor, nn

import passportize as pp
from benchmarks.common.paths import RESULTS
from benchmarks.point_clouds.pointnet_table import (
    PRESETS,
    Row,
    explain,
    read_rows,
    report,
    write_rows,
)
from benchmarks.training.short_training import train
from examples.pointnet_model import PointNet
from passportize.data.kicad import KiCadShapes
from passportize.data.shapes import generate_shapes
from passportize.utils.files import write_atomically

WIDTH = 128
# Batches are small, and behind the pooling a row is a cloud: the default sends half of a batch
# through the private branch.
CONFIGS = {
    "keyed": pp.PassportConfig.keyed(private_fraction=1.0),
    "keyed, quarter": pp.PassportConfig.keyed(),
    "paper": pp.PassportConfig.paper(),
    "signature": pp.PassportConfig.signature(),
}

Part = tuple[Tensor, Tensor]


def turned(clouds: Tensor, generator: torch.Generator) -> Tensor:
    """Clouds ``[B, N, 3]``, each turned around z by an angle of its own."""
    angle = torch.rand(len(clouds), 1, generator=generator) * (2 * math.pi)
    x, y, z = clouds.unbind(dim=2)
    cos, sin = torch.cos(angle), torch.sin(angle)
    return torch.stack([cos * x - sin * y, sin * x + cos * y, z], dim=2)


def accuracy(model: nn.Module, test: Part, which: str | None, classes: int) -> tuple[float, float]:
    """Overall and mean class accuracy in percent, all clouds in fixed random poses."""
    clouds, labels = turned(test[0], torch.Generator().manual_seed(99)), test[1]
    model.eval()
    with torch.no_grad():
        if which is None:
            guesses = torch.cat([model(part).argmax(1) for part in clouds.split(128)])
        else:
            with pp.branch(model, which):
                guesses = torch.cat([model(part).argmax(1) for part in clouds.split(128)])
    right = (guesses == labels).double()
    present = [label for label in range(classes) if bool((labels == label).any())]
    per_class = [float(right[labels == label].mean()) for label in present]
    return 100 * float(right.mean()), 100 * statistics.fmean(per_class)


def shaken(clouds: Tensor, generator: torch.Generator) -> Tensor:
    """Clouds ``[B, N, 3]``, randomly turned and slightly shaken."""
    clouds = turned(clouds, generator)
    return clouds + 0.01 * torch.randn(clouds.shape, generator=generator)


def run(
    split: str, seed: int, preset: str, epochs: int, data: Part, test: Part, classes: int
) -> Row:
    """Train one model, strip it and verify what is left."""
    start = time.process_time()
    torch.manual_seed(seed)
    model = PointNet(classes, WIDTH)
    private = strength = None
    bits = matched = 0
    if preset == "plain":
        train(model, *data, shaken, epochs, seed, joint=False)
    else:
        passport = pp.Passport.generate(
            "Benchmark", date="2026-11-28", secret=seed.to_bytes(32, "big")
        )
        config = CONFIGS[preset]
        pp.passportize(model, passport, config=config, example_inputs=data[0][:2])
        if preset != "paper":
            pp.embed_signature(model)
        train(model, *data, shaken, epochs, seed, joint=True)
        if config.has_private_pass:
            private, _ = accuracy(model, test, "private", classes)
        with tempfile.TemporaryDirectory() as folder:
            claim = Path(folder) / "model.claim.safetensors"
            pp.save_claim(model, claim)
            model = pp.unpassportize(model)
            verdict = pp.verify(model, passport, claim)
        bits, matched, strength = verdict.total, verdict.matched, verdict.strength
    overall, class_mean = accuracy(model, test, None, classes)
    return Row(
        split,
        seed,
        preset,
        epochs,
        data[0].shape[1],
        len(data[0]),
        len(test[0]),
        classes,
        overall,
        class_mean,
        private,
        bits,
        matched,
        strength,
        time.process_time() - start,
    )


def load(arguments: argparse.Namespace) -> tuple[dict[str, tuple[Part, Part]], int]:
    """Train and test part of each split, and the number of classes."""
    if arguments.smoke:
        parts = (generate_shapes(12, 64, seed=0), generate_shapes(4, 64, seed=1))
        return {"random": parts, "family": parts}, 15
    with Progress(transient=True) as bar:
        task = bar.add_task("reading solids", total=None)
        shapes = KiCadShapes.load(
            arguments.root,
            points=arguments.points,
            at_most=arguments.per_class,
            processes=arguments.processes,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    splits = {
        by: (shapes.split("train", by=by), shapes.split("test", by=by))
        for by in ("random", "family")
    }
    return splits, len(shapes.classes)


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--root", help="kicad-packages3d .deb or a folder with its *.3dshapes")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--points", type=int, default=64)
    parser.add_argument("--per-class", type=int, default=60, help="solids per class at most")
    parser.add_argument("--processes", type=int, default=2, help="to read the solids")
    parser.add_argument("--smoke", action="store_true", help="tiny run, nothing is written")
    parser.add_argument("--out", type=Path, default=RESULTS / "point_cloud.csv")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.seeds, arguments.epochs, arguments.points = 1, 2, 64
    torch.set_num_threads(1)
    splits, classes = load(arguments)
    rows = [] if arguments.smoke else read_rows(arguments.out)
    done = {row.key for row in rows}
    # All splits and branches of a seed before the next: a short run is a fair comparison, too.
    for presets in (PRESETS[:3], PRESETS[3:]):
        for seed, split, preset in itertools.product(range(arguments.seeds), splits, presets):
            key = tuple(str(v) for v in (split, seed, preset, arguments.epochs, arguments.points))
            if key in done:
                continue
            data, test = splits[split]
            row = run(split, seed, preset, arguments.epochs, data, test, classes)
            rows.append(row)
            print(row, flush=True)
            if not arguments.smoke:
                write_rows(arguments.out, rows)
                write_atomically(arguments.out.with_suffix(".md"), explain(rows).encode())
    print(report(rows))


if __name__ == "__main__":
    main()
