"""What `passportize` itself costs: against building the model, and against a training step.

In every round a model is built, given its branches without a check and with it, and trained for
some joint steps, one after another in one process, so that a busy machine slows all of them alike;
ratios are taken within a round, and their medians over rounds are reported. The clock is the
process's CPU time. The check is what `passportize` takes longer with it than without, on an example
that is the batch of the training steps.

    python -m benchmarks.cost.surgery         # writes results/surgery.json and .md
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

import passportize as pp
from benchmarks.common.paths import RESULTS
from benchmarks.common.records import heading, write_record
from examples.pointnet_model import PointNet

POINTS = "PointNet"
MODELS = {
    "resnet18": {},
    "mobilenetv3_small_100": {},
    "vit_tiny_patch16_224": {"img_size": 64},
    "convnext_atto": {},
    POINTS: {},
    "ghostnet_100": {},
    "resnet50": {},
    "hrnet_w18": {},
    "densenet201": {},
}
CLASSES, BATCH, SIZE, STEPS, ROUNDS = 10, 16, 64, 2, 3
PASSPORT = pp.Passport.generate("Benchmark", date="2026-11-28", secret=bytes(32))


def build(name: str) -> nn.Module:
    """A model with new weights."""
    if name == POINTS:
        return PointNet(CLASSES)
    model: nn.Module = timm.create_model(name, num_classes=CLASSES, **MODELS[name])
    return model


def one_round(name: str) -> dict[str, float]:
    """Seconds of processor time for each of the steps."""
    shape = (8 * SIZE, 3) if name == POINTS else (3, SIZE, SIZE)
    x, y = torch.randn(BATCH, *shape), torch.randint(0, CLASSES, (BATCH,))
    start = time.process_time()
    model = build(name)
    built = time.process_time()
    pp.passportize(model, PASSPORT, check=False)
    bare = time.process_time()
    pp.unpassportize(model)
    begin = time.process_time()
    pp.passportize(model, PASSPORT, example_inputs=x, check=False)
    with_example = time.process_time()
    pp.unpassportize(model)
    again = time.process_time()
    pp.passportize(model, PASSPORT, example_inputs=x)
    checked = time.process_time()
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        loss = pp.joint_loss(model, x, y, nn.functional.cross_entropy).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    step()
    first = time.process_time()
    for _ in range(STEPS):
        step()
    return {
        "build": built - start,
        "surgery": bare - built,
        "surgery_with_example": with_example - begin,
        "surgery_and_check": checked - again,
        "step": (time.process_time() - first) / STEPS,
    }


def measure(name: str, rounds: int) -> dict[str, float]:
    """Medians over rounds: seconds, and ratios taken within each."""
    found = [one_round(name) for _ in range(rounds)]
    for seconds in found:
        check = seconds["surgery_and_check"] - seconds["surgery_with_example"]
        seconds["surgery_over_build"] = seconds["surgery"] / seconds["build"]
        seconds["check_over_step"] = check / seconds["step"]
    return {key: round(statistics.median(each[key] for each in found), 3) for key in found[0]}


def table(record: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "# What surgery costs",
        "",
        f"`{record['command']}`; {record['machine']}, torch {record['torch']}. Processor time, "
        f"medians of {record['rounds']} rounds on a machine that others used as well, so the "
        f"ratios, taken within a round, say more than the seconds. Batch of {record['batch']}, "
        f"{record['size']} pixels (PointNet: {8 * record['size']} points); a step is a joint one "
        "with its optimizer.",
        "",
        "| model | building it, s | surgery without check, s | times building | a step, s | check, "
        "in steps |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in record["models"].items():
        lines.append(
            f"| {name} | {row['build']:.3f} | {row['surgery']:.3f} | "
            f"{row['surgery_over_build']:.2f} | {row['step']:.3f} | {row['check_over_step']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--models", nargs="*", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--out", type=Path, default=RESULTS / "surgery.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    one_round("resnet18")  # what is imported and compiled once
    record: dict[str, Any] = {
        **heading("what passportize itself costs", "benchmarks.cost.surgery"),
        "rounds": arguments.rounds,
        "batch": BATCH,
        "size": SIZE,
        "models": {},
    }
    for name in arguments.models:
        record["models"][name] = measure(name, arguments.rounds)
        print(name, record["models"][name], flush=True)
        write_record(arguments.out, record, table(record))


if __name__ == "__main__":
    main()
