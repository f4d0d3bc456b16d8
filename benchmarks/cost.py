"""What a training step costs with each preset, as a multiple of the plain step.

Question: how much slower is training with passports? Every round builds every variant in turn, in
random order, and times a few steps of it (as many as the slowest dial, ``sign_every=8``, takes to
come round), on the same batch, so that the machine's drift hits all alike; the ratio is taken in a
round and the median over rounds is reported with its quartiles. On the CPU the clock is the
process's CPU time, which other programs on a shared machine disturb least; on a GPU it is wall
time after synchronising. "plain, a quarter more" and "plain, twice the batch" are plain steps on
larger batches: what the extra samples alone cost on this machine, below which no second branch on
as many samples can be.

    python benchmarks/cost.py                      # writes benchmarks/results/cost.json
    python benchmarks/cost.py --device cuda
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import timm
import torch
from torch import nn

import passportize as pp
from passportize.atomic_file import write_atomically


@dataclass(frozen=True)
class Case:
    """A model at one size of its images, and its last stage."""

    model: str
    last_stage: str
    size: int = 96
    options: tuple[tuple[str, int], ...] = ()


CASES = (
    Case("resnet18", "layer4*"),
    Case("vit_tiny_patch16_224", "blocks.9*", options=(("img_size", 96),)),
)
STEPS = 8
# 1.05 times one plus the share of the batch that takes the private branch.
LIMITS = {"signature": 1.03, "keyed": 1.3125, "keyed, whole batch": 2.1}


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


def measure(case: Case, batch: int, rounds: int, device: str) -> dict[str, dict[str, float]]:
    """Median ratio of every preset's step to the plain step on one model."""
    torch.manual_seed(0)
    plain = timm.create_model(case.model, num_classes=100, **dict(case.options)).to(device)
    x = torch.randn(batch, 3, case.size, case.size, device=device)
    y = torch.randint(0, 100, (batch,), device=device)
    passport = pp.Passport.generate("Benchmark", secret=bytes(32))
    presets = {
        "signature": pp.PassportConfig.signature(),
        "keyed": pp.PassportConfig.keyed(),
        "keyed, whole batch": pp.PassportConfig.keyed(private_fraction=1.0),
        "paper": pp.PassportConfig.paper(),
    }

    def protected(config: pp.PassportConfig | None, where: str | None) -> Callable[[], None]:
        model = pp.passportize(copy.deepcopy(plain), passport, config=config, where=where)
        return stepper(model, x, y)

    def unprotected(more: int) -> Callable[[], None]:
        return stepper(copy.deepcopy(plain), torch.cat([x, x[:more]]), torch.cat([y, y[:more]]))

    builders: dict[str, Callable[[], Callable[[], None]]] = {
        "plain": partial(unprotected, 0),
        **{label: partial(protected, config, None) for label, config in presets.items()},
        "keyed, last stage": partial(protected, None, case.last_stage),
        "plain, a quarter more": partial(unprotected, batch // 4),
        "plain, twice the batch": partial(unprotected, batch),
        # What the method itself reads for a ratio of exactly one.
        "plain again": partial(unprotected, 0),
    }
    ratios: dict[str, list[float]] = {label: [] for label in builders}
    clock = time.process_time if device == "cpu" else time.perf_counter
    shuffler = random.Random(0)
    for _ in range(rounds):
        order = list(builders)
        shuffler.shuffle(order)
        seconds = {}
        for label in order:
            # Built anew, because where a model happens to lie in memory makes it a few percent
            # faster or slower for as long as it lives.
            step = builders[label]()
            step()
            start = clock()
            for _ in range(STEPS):
                step()
            seconds[label] = clock() - start
            del step
        for label in builders:
            ratios[label].append(seconds[label] / seconds["plain"])
    return {
        label: dict(
            zip(
                ("quartile_1", "median", "quartile_3"),
                (round(value, 3) for value in statistics.quantiles(values, n=4)),
                strict=True,
            )
        )
        for label, values in ratios.items()
        if label != "plain"
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cost.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    results = {}
    for case in CASES:
        results[case.model] = measure(case, arguments.batch, arguments.rounds, arguments.device)
        print(case.model, json.dumps(results[case.model], indent=1), flush=True)
    record = {
        "question": "step cost as a multiple of the plain step, paired within each round",
        "command": "python benchmarks/cost.py",
        "machine": f"{platform.machine()}, {arguments.threads} thread(s), {arguments.device}",
        "torch": torch.__version__,
        "batch": arguments.batch,
        "last_stage": {case.model: case.last_stage for case in CASES},
        "rounds": arguments.rounds,
        "image_size": {case.model: case.size for case in CASES},
        "steps_per_round": STEPS,
        "limits": LIMITS,
        "ratios": results,
    }
    text = json.dumps(record, indent=2) + "\n"
    write_atomically(arguments.out, text.encode(), overwrite=True)
    for name, ratios in results.items():
        for preset, limit in LIMITS.items():
            median = ratios[preset]["median"]
            verdict = "within" if median <= limit else "ABOVE"
            print(f"{name}: {preset} {median} is {verdict} the limit of {limit}")


if __name__ == "__main__":
    main()
