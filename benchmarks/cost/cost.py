"""What a training step costs with each preset, as a multiple of the plain step.

Question: how much slower is training with passports? In every round all variants are built anew,
and take their steps in turn, one each in random order (as many turns as the slowest dial,
``sign_every=8``, takes to come round), on the same batch, so that whatever else the machine does
hits all alike; the ratio of the sums is taken in a round and the median over rounds is reported
with its quartiles. Two plain steps beside each other say how good that is. On the CPU the clock is
the process's CPU time, which other programs on a shared machine disturb least; on a GPU it is wall
time after synchronising. "plain, as many samples" and "plain, twice the batch" are plain steps on
larger batches: what the extra samples alone cost on this machine, below which no second branch on
as many samples can be. PointNet's norms behind its pooling see one value of each sample, so half of
its batch of 32 is private.

Operations are counted, too, forward and backward, without views: what a device is asked to start.

A GPU's allocator keeps the memory that a step has freed. glibc gives large blocks back to the
kernel, and page faults then make a batch of twice the size cost more than twice as much, plain or
not. So on the CPU glibc is told to keep its memory, too, as guides to training on CPUs advise.

What does not depend on the batch, the responses and the sign loss, weighs most where images are
small: at 96 pixels a step on the same weights is five times shorter than at ImageNet's 224.

    python -m benchmarks.cost.cost                  # adds to benchmarks/results/cost.json
    python -m benchmarks.cost.cost --size 224       # likewise, five times as long
    python -m benchmarks.cost.cost --device cuda --out cost_cuda.json
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

import passportize as pp
from benchmarks.common.operations import CountOperations
from benchmarks.common.paths import RESULTS
from examples.pointnet_model import PointNet
from passportize.layers.joint_forward import private_share
from passportize.layers.model import switch_of
from passportize.utils.files import write_atomically


@dataclass(frozen=True)
class Case:
    """A model and what it is trained on.

    Attributes:
        model: A name of timm's, or ``"PointNet"``.
        last_stage: Names of the norms in its last stage, where only these are bound in one variant.
        size_argument: Name of the argument that takes the size of the images.
        full: Whether all variants are measured, or those that have a limit and their floors.
    """

    model: str
    last_stage: str = ""
    size_argument: str = ""
    full: bool = False

    def build(self, size: int) -> nn.Module:
        """The model with new weights."""
        if self.model == POINTS:
            return PointNet(CLASSES)
        options = {self.size_argument: size} if self.size_argument else {}
        model: nn.Module = timm.create_model(self.model, num_classes=CLASSES, **options)
        return model

    def batch(self, size: int, samples: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Random inputs and targets."""
        shape = (8 * size, 3) if self.model == POINTS else (3, size, size)
        return torch.randn(samples, *shape), torch.randint(0, CLASSES, (samples,))


CLASSES = 100
POINTS = "PointNet"
CASES = (
    Case("resnet18", "layer4*", full=True),
    Case("vit_tiny_patch16_224", "blocks.9*", "img_size", full=True),
    Case("mobilenetv3_small_100"),
    Case("convnext_atto"),
    Case(POINTS),
)
PASSPORT = pp.Passport.generate("Benchmark", date="2026-11-28", secret=bytes(32))
FLOORS = ("plain", "plain, as many samples", "plain, twice the batch", "plain again")
STEPS = 8
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
OPERATIONS_LIMIT = 2.5
SIGNATURE_LIMIT = 1.03


def limits(share: float) -> dict[str, float]:
    """1.05 times one plus the share of the batch that takes the private branch."""
    return {
        "signature": SIGNATURE_LIMIT,
        "keyed": round(1.05 * (1 + share), 4),
        "keyed, whole batch": 2.1,
    }


def stepper(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    """One training step of a plain or passportized model."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    criterion = nn.functional.cross_entropy
    joint = any(isinstance(module, pp.PassportLayer) for module in model.modules())
    model.train()

    def step() -> None:
        loss = pp.joint_loss(model, x, y, criterion).total if joint else criterion(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if x.is_cuda:
            torch.cuda.synchronize()

    return step


def count(case: Case, size: int, batch: int) -> dict[str, float]:
    """Operations of a plain step, and of ``keyed`` and ``signature`` as multiples of it.

    Forward and backward pass without views; steps with the sign loss and steps without it.
    """
    torch.manual_seed(0)
    plain = case.build(size).train()
    x, y = case.batch(size, batch)

    def operations(step: Callable[[], torch.Tensor]) -> int:
        with CountOperations() as counted:
            step().backward()
        total: int = counted.total
        return total

    criterion = nn.functional.cross_entropy
    found = {"plain": float(operations(lambda: criterion(plain(x), y)))}
    for preset in ("keyed", "signature"):
        config = getattr(pp.PassportConfig, preset)()
        model = pp.passportize(copy.deepcopy(plain), PASSPORT, config=config, example_inputs=x[:2])
        for kind in ("with sign loss", "without"):
            model.zero_grad()
            total = operations(lambda m=model: pp.joint_loss(m, x, y, criterion).total)  # type: ignore[misc]
            found[f"{preset}, {kind}"] = round(total / found["plain"], 2)
    return found


def measure(
    case: Case, size: int, batch: int, rounds: int, device: str
) -> tuple[int, dict[str, dict[str, float]]]:
    """Private samples of a batch, and every preset's step as a multiple of the plain one."""
    torch.manual_seed(0)
    plain = case.build(size).to(device)
    x, y = (tensor.to(device) for tensor in case.batch(size, batch))
    presets = {
        "signature": pp.PassportConfig.signature(),
        "keyed": pp.PassportConfig.keyed(),
        "keyed, whole batch": pp.PassportConfig.keyed(private_fraction=1.0),
        "keyed, sign_every=1": pp.PassportConfig.keyed(sign_every=1),
        "whole batch, sign_every=1": pp.PassportConfig.keyed(private_fraction=1.0, sign_every=1),
        "paper": pp.PassportConfig.paper(),
    }

    def protected(config: pp.PassportConfig | None, where: str | None) -> Callable[[], None]:
        model = pp.passportize(
            copy.deepcopy(plain), PASSPORT, config=config, where=where, example_inputs=x[:2]
        )
        return stepper(model, x, y)

    probe = pp.passportize(copy.deepcopy(plain), PASSPORT, example_inputs=x[:2])
    private = private_share(switch_of(probe), batch)

    def unprotected(more: int) -> Callable[[], None]:
        return stepper(copy.deepcopy(plain), torch.cat([x, x[:more]]), torch.cat([y, y[:more]]))

    builders: dict[str, Callable[[], Callable[[], None]]] = {
        "plain": partial(unprotected, 0),
        **{label: partial(protected, config, None) for label, config in presets.items()},
        "keyed, last stage": partial(protected, None, case.last_stage),
        "plain, as many samples": partial(unprotected, private),
        "plain, twice the batch": partial(unprotected, batch),
        # What the method itself reads for a ratio of exactly one.
        "plain again": partial(unprotected, 0),
    }
    if not case.full:
        builders = {label: builders[label] for label in (*limits(0), *FLOORS)}
    seconds: dict[str, list[float]] = {label: [] for label in builders}
    clock = time.process_time if device == "cpu" else time.perf_counter
    shuffler = random.Random(0)
    for _ in range(rounds):
        # Built anew, because where a model happens to lie in memory makes it a few percent faster
        # or slower for as long as it lives.
        steps = {label: build() for label, build in builders.items()}
        for step in steps.values():
            step()
        round_seconds = dict.fromkeys(builders, 0.0)
        for label in _shuffled(steps, STEPS, shuffler):
            start = clock()
            steps[label]()
            round_seconds[label] += clock() - start
        for label, value in round_seconds.items():
            seconds[label].append(value)
    return private, {
        label: dict(
            zip(
                ("quartile_1", "median", "quartile_3"),
                (
                    round(value, 3)
                    for value in statistics.quantiles(_ratios(values, seconds["plain"]), n=4)
                ),
                strict=True,
            )
        )
        for label, values in seconds.items()
        if label != "plain"
    }


def _shuffled(labels: Iterable[str], turns: int, shuffler: random.Random) -> Iterator[str]:
    """All labels in random order, over and over."""
    order = list(labels)
    for _ in range(turns):
        shuffler.shuffle(order)
        yield from order


def _ratios(seconds: list[float], plain: list[float]) -> list[float]:
    return [one / other for one, other in zip(seconds, plain, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS / "cost.json")
    parser.add_argument("--size", type=int, default=96, help="pixels along a side")
    parser.add_argument("--models", nargs="*", help="some of them; all by default")
    arguments = parser.parse_args()
    if not KEEP_MEMORY.items() <= os.environ.items():
        # glibc reads them when a process starts.
        again = [sys.executable, *sys.orig_argv[1:]]
        os.execve(sys.executable, again, {**os.environ, **KEEP_MEMORY})
    torch.set_num_threads(arguments.threads)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        if arguments.models and case.model not in arguments.models:
            continue
        operations = count(case, arguments.size, 16)
        private, ratios = measure(
            case, arguments.size, arguments.batch, arguments.rounds, arguments.device
        )
        print(case.model, arguments.size, json.dumps([operations, ratios], indent=1), flush=True)
        checks = [
            (preset, ratios[preset]["median"], limit)
            for preset, limit in limits(private / arguments.batch).items()
        ]
        most = max(value for kind, value in operations.items() if kind != "plain")
        for label, value, limit in [*checks, ("operations", most, OPERATIONS_LIMIT)]:
            verdict = "within" if value <= limit else "ABOVE"
            print(f"{case.model}: {label} {value} is {verdict} the limit of {limit}", flush=True)
        record = {
            "model": case.model,
            "image_size": arguments.size,
            "command": f"python -m benchmarks.cost.cost --size {arguments.size} "
            f"--rounds {arguments.rounds}",
            "machine": f"{platform.machine()}, {arguments.threads} thread(s), {arguments.device}",
            "torch": torch.__version__,
            "batch": arguments.batch,
            "private_samples": private,
            "limits": limits(private / arguments.batch),
            "last_stage": case.last_stage or None,
            "rounds": arguments.rounds,
            "steps_per_round": STEPS,
            "ratios": ratios,
        }
        add(arguments.out, record, operations)


def add(path: Path, record: dict[str, Any], operations: dict[str, float]) -> None:
    """Put one record among those of other sizes and models."""
    before = json.loads(path.read_text()) if path.exists() else {"runs": [], "operations": {}}
    counts = {**before["operations"], record["model"]: operations}
    runs = before["runs"]
    place = ("model", "image_size")
    runs = [run for run in runs if any(run[key] != record[key] for key in place)]
    runs = sorted([*runs, record], key=lambda run: [run[key] for key in place])
    question = "step cost as a multiple of the plain step, paired within each round"
    whole = {"question": question, "operations": counts, "runs": runs}
    text = json.dumps(whole, indent=2) + "\n"
    write_atomically(path, text.encode(), overwrite=True)


if __name__ == "__main__":
    main()
