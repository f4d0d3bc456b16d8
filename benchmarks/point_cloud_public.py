"""Public point-cloud code, as its authors wrote it: anchors, round trip, joint step, strength.

Question: does surgery work on repositories that know nothing of it? Nothing of them is part of this
project. Clone them next to each other, each into ``owner+name``, and name the folder:

    git clone https://github.com/yanx27/Pointnet_Pointnet2_pytorch yanx27+Pointnet_Pointnet2_pytorch
    ...            WangYueFt/dgcnn, antao97/dgcnn.pytorch, ma-xu/pointMLP-pytorch,
                   Strawberry-Eat-Mango/PCT_Pytorch
    python benchmarks/point_cloud_public.py --checkouts FOLDER

What is changed to run them without CUDA, in memory only: ``torch.device('cuda')`` in the two DGCNNs
becomes the CPU, and the CUDA extension ``pointnet2_ops`` (PointMLP, PCT) is replaced by a farthest
point sampling in plain torch.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
import time
import types
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import passportize as pp
from passportize.atomic_file import write_atomically
from passportize.data import SHAPE_CLASSES, generate_shapes
from passportize.forward import passport_layers
from passportize.null_model import log2_binomial_tail
from passportize.site import Role

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from round_trip import assert_round_trip

CLASSES = len(SHAPE_CLASSES)
BATCH = 4
OUT = Path(__file__).parent / "results" / "point_cloud_public.md"


@dataclass(frozen=True)
class Public:
    """A public model: where its code is, how it is built, how many points it wants."""

    label: str
    repository: str
    commit: str
    file: str
    build: Callable[[ModuleType], nn.Module]
    points: int
    steps: int = 60


def _dgcnn(module: ModuleType) -> nn.Module:
    arguments = SimpleNamespace(k=20, emb_dims=1024, dropout=0.5)
    made: nn.Module = getattr(module, "DGCNN", None) or module.DGCNN_cls
    return made(arguments, CLASSES)  # type: ignore[operator, no-any-return]


YANX27 = ("yanx27+Pointnet_Pointnet2_pytorch", "eb64fe0b4c24055559cea26299cb485dcb43d8dd")
POINTMLP = ("ma-xu+pointMLP-pytorch", "1ab7f04e88d2aeb8fd16921a2b2fc4fba950b6df")
MLP_FILE = "classification_ModelNet40/models/pointmlp.py"

MODELS = [
    Public(
        "pointnet_cls",
        *YANX27,
        "models/pointnet_cls.py",
        lambda module: module.get_model(CLASSES, normal_channel=False),
        256,
    ),
    Public(
        "DGCNN (WangYueFt)",
        "WangYueFt+dgcnn",
        "f765b469a67730658ba554e97dc11723a7bab628",
        "pytorch/model.py",
        _dgcnn,
        128,
    ),
    Public(
        "DGCNN_cls (antao97)",
        "antao97+dgcnn.pytorch",
        "07d534c2702905010ec9991619f552d8cacae45b",
        "model.py",
        _dgcnn,
        128,
    ),
    Public(
        "PCT",
        "Strawberry-Eat-Mango+PCT_Pytorch",
        "0199a3b8c89274aeeebb5634c82a47573c8be492",
        "model.py",
        lambda module: module.Pct(SimpleNamespace(dropout=0.5), CLASSES),
        512,
    ),
    Public(
        "pointnet2_cls_ssg",
        *YANX27,
        "models/pointnet2_cls_ssg.py",
        lambda module: module.get_model(CLASSES, normal_channel=False),
        512,
    ),
    Public(
        "PointMLP-elite", *POINTMLP, MLP_FILE, lambda module: module.pointMLPElite(CLASSES), 512
    ),
    Public(
        "pointnet2_cls_msg",
        *YANX27,
        "models/pointnet2_cls_msg.py",
        lambda module: module.get_model(CLASSES, normal_channel=False),
        512,
        30,
    ),
    Public("PointMLP", *POINTMLP, MLP_FILE, lambda module: module.pointMLP(CLASSES), 512, 20),
]


def farthest_points(xyz: Tensor, count: int) -> Tensor:
    """What the CUDA extension computes: indices ``[B, count]`` of points far from each other."""
    rows = torch.arange(len(xyz))
    distance = torch.full(xyz.shape[:2], math.inf)
    farthest = torch.zeros(len(xyz), dtype=torch.long)
    chosen = []
    for _ in range(count):
        chosen.append(farthest)
        centre = xyz[rows, farthest].unsqueeze(1)
        distance = torch.minimum(distance, (xyz - centre).square().sum(-1))
        farthest = distance.argmax(-1)
    return torch.stack(chosen, 1)


def stand_in() -> None:
    """Puts ``pointnet2_ops`` in place, as far as the models use it."""
    utilities = types.ModuleType("pointnet2_ops.pointnet2_utils")
    utilities.furthest_point_sample = farthest_points  # type: ignore[attr-defined]
    utilities.gather_operation = lambda points, index: torch.gather(  # type: ignore[attr-defined]
        points, 2, index.long().unsqueeze(1).expand(-1, points.shape[1], -1)
    )
    package = types.ModuleType("pointnet2_ops")
    package.pointnet2_utils = utilities  # type: ignore[attr-defined]
    sys.modules["pointnet2_ops"] = package
    sys.modules["pointnet2_ops.pointnet2_utils"] = utilities


def load(path: Path) -> ModuleType:
    """A module from a file; its neighbours can be imported, and are forgotten afterwards."""
    known = set(sys.modules)
    sys.path.insert(0, str(path.parent))
    try:
        spec = importlib.util.spec_from_loader(path.stem, loader=None)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        source = path.read_text().replace("torch.device('cuda')", "torch.device('cpu')")
        exec(compile(source, str(path), "exec"), module.__dict__)
        return module
    finally:
        sys.path.remove(str(path.parent))
        for name in set(sys.modules) - known:
            origin = getattr(sys.modules[name], "__file__", None) or ""
            if origin.startswith(str(path.parent)):
                del sys.modules[name]


def scores(output: Any) -> Tensor:
    """The class scores; some models return the features, too."""
    first: Tensor = output[0] if isinstance(output, tuple) else output
    return first


def batch(model: Public, seed: int, size: int) -> tuple[Tensor, Tensor]:
    """Generated clouds ``[B, 3, N]`` and their labels."""
    clouds, labels = generate_shapes(1, model.points, seed=seed)
    return clouds[:size].transpose(1, 2).contiguous(), labels[:size]


def measure(public: Public, folder: Path) -> dict[str, str]:
    """One row of the table."""
    start = time.process_time()
    torch.manual_seed(0)
    with redirect_stdout(None):
        model = public.build(load(folder / public.repository / public.file))
    passport = pp.Passport.generate("Benchmark", secret=bytes(32), date="2026-01-01")
    x, _ = batch(public, 0, 3)
    planned = pp.plan(model, example_inputs=x)
    # One walk of the autograd graph checks the graph; a difference is a note that says so.
    differences = [note for note in planned.notes if "forward pass says" in note]
    assert_round_trip(
        model, passport, x, criterion=lambda output, _: scores(output).square().mean()
    )
    pp.passportize(model, passport, example_inputs=x)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model.train()
    loss = None
    for step in range(public.steps):
        clouds, labels = batch(public, step + 1, BATCH)
        loss = pp.joint_loss(
            model, clouds, labels, lambda output, y: F.cross_entropy(scores(output), y)
        )
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    assert loss is not None and loss.private is not None and bool(loss.total.isfinite())
    bits = sum(layer.passport.site.bits for layer in passport_layers(model).values())
    right = round(pp.signature_accuracy(model) * bits)
    strength = -log2_binomial_tail(right, bits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pp.unpassportize(model)
    roles = {role: len(planned.role(role)) for role in Role}
    rules = {site.anchor.rule for site in planned.sites if site.anchor}
    return {
        "model": public.label,
        "repository": f"{public.repository.replace('+', '/')} @ {public.commit[:10]}",
        "norms": str(len(planned.sites)),
        "bound": str(roles[Role.BOUND]),
        "statistics only": str(roles[Role.STATISTICS]),
        "never run": str(roles[Role.UNREACHED]),
        "read by": f"{planned.method} ({', '.join(sorted(rules))})",
        "walk disagrees": str(len(differences)),
        "round trip": "exact",
        "bits right": f"{right} of {bits}",
        "steps": str(public.steps),
        "strength": f"{strength:.0f}",
        "CPU s": f"{time.process_time() - start:.0f}",
    }


def table(rows: list[dict[str, str]]) -> str:
    """The Markdown file."""
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *(list(row.values()) for row in rows)]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"""# Public point-cloud code

Measured by `benchmarks/point_cloud_public.py` on one CPU thread, models at their published size,
generated clouds of {CLASSES} classes, preset `keyed`, Adam, learning rate 0.01, batches of {BATCH}.
"statistics only": the norm behind the first layer, whose rows of three coordinates carry no bit.
"walk disagrees": norms for which the autograd graph of a real forward pass names another weight
than the fx graph. "round trip": public output in eval and training mode, buffers, and every
attribute of every module after `unpassportize`, bit for bit; one joint step reaches every bound
weight. "strength": bits of evidence after the training steps, -log2 of the exact p-value.

{body}
"""


def main() -> None:
    """Measure what is there and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--checkouts", type=Path, required=True)
    parser.add_argument("--only", help="label of one model; nothing is written")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    stand_in()
    rows = []
    for public in MODELS:
        if arguments.only not in (None, public.label):
            continue
        rows.append(measure(public, arguments.checkouts))
        print(rows[-1], flush=True)
        if arguments.only is None:
            write_atomically(OUT, table(rows).encode())


if __name__ == "__main__":
    main()
