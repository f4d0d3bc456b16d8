"""What a training step costs with each preset, as a multiple of the plain step.

Question: how much slower is training with passports? Every round times a few steps of every
variant in turn (as many as the slowest dial, ``sign_every=8``, takes to come round), in random
order, on the same batch, so that the machine's drift hits all alike; the ratio is taken within a
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
from pathlib import Path

import timm
import torch
from torch import nn

import passportize as pp
from passportize.atomic_file import write_atomically


@dataclass(frozen=True)
class Case:
    """A model at one size of its images; ``shortly``: only what the limits are about."""

    model: str
    size: int
    last_stage: str
    steps: int = 8
    shortly: bool = False
    options: tuple[tuple[str, int], ...] = ()

    @property
    def label(self) -> str:
        """What the tables call it."""
        return f"{self.model} at {self.size}"


# At 96 pixels the weights of resnet18 are large against its activations, so that what is computed
# from weights shows most.
CASES = (
    Case("resnet18", 96, "layer4*"),
    Case("vit_tiny_patch16_224", 96, "blocks.9*", options=(("img_size", 96),)),
    Case("resnet18", 160, "layer4*", steps=4, shortly=True),
)
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
        "keyed": pp.PassportConfig.keyed(),
        "keyed, whole batch": pp.PassportConfig.keyed(private_fraction=1.0),
    }
    if not case.shortly:
        presets["signature"] = pp.PassportConfig.signature()
        presets["paper"] = pp.PassportConfig.paper()
    steps = {"plain": stepper(plain, x, y)}
    for label, config in presets.items():
        steps[label] = stepper(pp.passportize(copy.deepcopy(plain), passport, config=config), x, y)
    if not case.shortly:
        bound_late = pp.passportize(copy.deepcopy(plain), passport, where=case.last_stage)
        steps["keyed, last stage"] = stepper(bound_late, x, y)
    for label, more in (("plain, a quarter more", batch // 4), ("plain, twice the batch", batch)):
        larger = torch.cat([x, x[:more]]), torch.cat([y, y[:more]])
        steps[label] = stepper(copy.deepcopy(plain), *larger)
    # A second plain model shows what the method itself reads for a ratio of exactly one.
    steps["plain again"] = stepper(copy.deepcopy(plain), x, y)
    for step in steps.values():
        step()
    ratios: dict[str, list[float]] = {label: [] for label in steps}
    clock = time.process_time if device == "cpu" else time.perf_counter
    shuffler = random.Random(0)
    for _ in range(rounds):
        order = list(steps)
        shuffler.shuffle(order)
        seconds = {}
        for label in order:
            start = clock()
            for _ in range(case.steps):
                steps[label]()
            seconds[label] = clock() - start
        for label in steps:
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
        results[case.label] = measure(case, arguments.batch, arguments.rounds, arguments.device)
        print(case.label, json.dumps(results[case.label], indent=1), flush=True)
    record = {
        "question": "step cost as a multiple of the plain step, paired within each round",
        "command": "python benchmarks/cost.py",
        "machine": f"{platform.machine()}, {arguments.threads} thread(s), {arguments.device}",
        "torch": torch.__version__,
        "batch": arguments.batch,
        "last_stage": {case.model: case.last_stage for case in CASES},
        "rounds": arguments.rounds,
        "steps_per_round": {case.label: case.steps for case in CASES},
        "limits": LIMITS,
        "ratios": results,
    }
    text = json.dumps(record, indent=2) + "\n"
    write_atomically(arguments.out, text.encode(), overwrite=True)
    for name, ratios in results.items():
        for preset, limit in LIMITS.items():
            if preset not in ratios:
                continue
            median = ratios[preset]["median"]
            verdict = "within" if median <= limit else "ABOVE"
            print(f"{name}: {preset} {median} is {verdict} the limit of {limit}")


if __name__ == "__main__":
    main()
