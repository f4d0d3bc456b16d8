r"""Public point-cloud code, as its authors wrote it: anchors, round trip, joint step, strength.

Question: does surgery work on code that knows nothing of it? Nothing of it is part of this project.
Clone the repositories next to each other, each into ``owner+name``, put the packages beside them,
and name the folder:

    git clone https://github.com/yanx27/Pointnet_Pointnet2_pytorch yanx27+Pointnet_Pointnet2_pytorch
    ...            WangYueFt/dgcnn, antao97/dgcnn.pytorch, ma-xu/pointMLP-pytorch,
                   Strawberry-Eat-Mango/PCT_Pytorch, fxia22/pointnet.pytorch, vinits5/learning3d
    pip install --no-deps --target packages torch-pointcloud==0.0.18 openpoints==0.1.2 \
        h5py pandas python-dateutil six joblib tqdm multimethod easydict termcolor shortuuid
    python -m benchmarks.point_clouds.public --checkouts FOLDER

What is changed to run them without CUDA, in memory only: ``torch.device('cuda')`` in the two DGCNNs
becomes the CPU, and the compiled extensions ``pointnet2_ops`` (PointMLP, PCT) and ``pyg_lib``
(torch-pointcloud) are replaced by sampling and neighbour search in plain torch.
"""

from __future__ import annotations

import argparse
import csv
import io
import time
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import passportize as pp
from benchmarks.common.csv_rows import read_rows
from benchmarks.common.paths import RESULTS
from benchmarks.point_clouds.public_code import load, stand_in
from benchmarks.point_clouds.public_models import CLASSES, MODELS, Public
from passportize.data.shapes import generate_shapes
from passportize.layers.model import passport_layers
from passportize.signature.null_model import log2_binomial_tail
from passportize.signature.site import Role
from passportize.utils.files import write_atomically
from tests.support.round_trip import assert_round_trip

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
OUT = RESULTS / "point_cloud_public.md"


def batch(model: Public, seed: int, size: int) -> tuple[Any, Tensor]:
    """Generated clouds, as the model takes them, and their labels."""
    clouds, labels = generate_shapes(1, model.points, seed=seed)
    return model.inputs(clouds[:size].transpose(1, 2).contiguous()), labels[:size]


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Scores of clouds ``[B, C]`` or of points ``[B, C, N]``: each has the class of its cloud."""
    points = scores.shape[2:]
    return F.cross_entropy(scores, labels.view(-1, *[1] * len(points)).expand(-1, *points))


def first_pass(model: nn.Module, inputs: Any) -> set[nn.Module]:
    """Norms of torch that run, counted without the library; lazy layers get their shapes.

    Draws no random number of what follows.
    """
    ran: set[nn.Module] = set()
    handles = [
        module.register_forward_pre_hook(lambda norm, _: ran.add(norm))
        for module in model.modules()
        if isinstance(module, NORMS)
    ]
    with torch.no_grad(), torch.random.fork_rng():
        model.eval()
        model(*inputs) if isinstance(inputs, tuple) else model(inputs)
        model.train()
    for handle in handles:
        handle.remove()
    return ran


def measure(public: Public, folder: Path) -> dict[str, str]:
    """One row of the table."""
    start = time.process_time()
    torch.manual_seed(0)
    with redirect_stdout(None):
        model = public.build(load(folder, public.repository, public.code))
    passport = pp.Passport.generate("Benchmark", secret=bytes(32), date="2026-01-01")
    x, _ = batch(public, 0, 3)
    ran = first_pass(model, x)
    planned = pp.plan(model, example_inputs=x)
    swapped = planned.role(Role.BOUND) + planned.role(Role.STATISTICS)
    missed = ran - {model.get_submodule(site.name) for site in swapped}
    # One walk of the autograd graph checks the graph; a difference is a note that says so.
    differences = [note for note in planned.notes if "forward pass says" in note]
    assert_round_trip(
        model, passport, x, criterion=lambda output, _: public.scores(output).square().mean()
    )
    pp.passportize(model, passport, example_inputs=x)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model.train()
    loss = None
    for step in range(public.steps):
        clouds, labels = batch(public, step + 1, public.batch)
        loss = pp.joint_loss(
            model, clouds, labels, lambda output, y: cross_entropy(public.scores(output), y)
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
        "from": public.origin,
        "norms": str(len(planned.sites)),
        "bound": str(roles[Role.BOUND]),
        "statistics only": str(roles[Role.STATISTICS]),
        "never run": str(roles[Role.UNREACHED]),
        "run, not swapped": str(len(missed)),
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

Measured by `python -m benchmarks.point_clouds.public --checkouts FOLDER` on one CPU thread, models
at their published size, generated clouds of {CLASSES} classes (each point has the class of its
cloud where a model judges points), preset `keyed`, Adam, learning rate 0.01.

- "statistics only": norms behind weights whose rows have fewer than 8 entries (three coordinates,
  mostly), which carry no bit.
- "never run": norms that the forward pass does not call; the plan names them, and they stay as
  they are.
- "run, not swapped": norms of torch that forward hooks saw, without help of the library, and that
  surgery left as they are.
- "walk disagrees": norms for which the autograd graph of a real forward pass names another weight
  than the fx graph.{notes(rows)}
- "round trip": public output in eval and training mode, buffers, and every attribute of every
  module after `unpassportize`, bit for bit; one joint step reaches every bound weight.
- "strength": bits of evidence after the training steps, -log2 of the exact p-value.

{body}
"""


def notes(rows: list[dict[str, str]]) -> str:
    """What a disagreement means, where there is one."""
    if not any(int(row["walk disagrees"]) and "downstream" in row["read by"] for row in rows):
        return ""
    return """ With the rule "downstream" that is expected: behind a sum over
  neighbours the graph binds a norm to the weight that reads it, the walk to one of the summands."""


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
    done = {(row["model"], row["from"]) for row in rows}
    for public in MODELS:
        if (public.label, public.origin) in done or arguments.only not in (None, public.label):
            continue
        rows.append(measure(public, arguments.checkouts))
        print(rows[-1], flush=True)
        if arguments.only is None:
            write_atomically(OUT.with_suffix(".csv"), as_csv(rows).encode())
    if arguments.only is None and rows:
        write_atomically(OUT, table(rows).encode())


if __name__ == "__main__":
    main()
