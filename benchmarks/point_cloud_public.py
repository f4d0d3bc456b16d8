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
import csv
import io
import sys
import time
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from csv_rows import read_rows
from torch import Tensor

import passportize as pp
from passportize.atomic_file import write_atomically
from passportize.data import generate_shapes
from passportize.forward import passport_layers
from passportize.null_model import log2_binomial_tail
from passportize.site import Role

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from public_models import CLASSES, MODELS, Public, load, stand_in
from round_trip import assert_round_trip

OUT = Path(__file__).parent / "results" / "point_cloud_public.md"


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
        clouds, labels = batch(public, step + 1, public.batch)
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
        "batch": str(public.batch),
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
generated clouds of {CLASSES} classes, preset `keyed`, Adam, learning rate 0.01.
"statistics only": the norm behind the first layer, whose rows of three coordinates carry no bit.
"walk disagrees": norms for which the autograd graph of a real forward pass names another weight
than the fx graph. "round trip": public output in eval and training mode, buffers, and every
attribute of every module after `unpassportize`, bit for bit; one joint step reaches every bound
weight. "strength": bits of evidence after the training steps, -log2 of the exact p-value.

{body}
"""


def as_csv(rows: list[dict[str, str]]) -> str:
    """The rows as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def main() -> None:
    """Measure what is there and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--checkouts", type=Path, required=True)
    parser.add_argument("--only", help="label of one model; nothing is written")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    stand_in()
    rows = read_rows(OUT.with_suffix(".csv")) if arguments.only is None else []
    done = {row["model"] for row in rows}
    for public in MODELS:
        if public.label in done or arguments.only not in (None, public.label):
            continue
        rows.append(measure(public, arguments.checkouts))
        print(rows[-1], flush=True)
        if arguments.only is None:
            write_atomically(OUT.with_suffix(".csv"), as_csv(rows).encode())
            write_atomically(OUT, table(rows).encode())


if __name__ == "__main__":
    main()
