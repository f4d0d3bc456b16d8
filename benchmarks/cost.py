"""What a training step costs with each preset, as a multiple of the plain step.

Question: how much slower is training with passports? Every round times a few steps of every
variant in turn (as many as the slowest dial, ``sign_every=8``, takes to come round), in random
order, on the same batch, so that the machine's drift hits all alike; the ratio is taken within a
round and the median over rounds is reported with its quartiles. On the CPU the clock is the
process's CPU time, which other programs on a shared machine disturb least; on a GPU it is wall
time after synchronising.

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
from pathlib import Path

import timm
import torch
from torch import nn

import passportize as pp
from passportize.atomic_file import write_atomically

SIZE = 96
MODELS: dict[str, dict[str, int]] = {
    "resnet18": {},
    "vit_tiny_patch16_224": {"img_size": SIZE},
}
STEPS = 8
LIMITS = {"signature": 1.03, "keyed": 1.35}


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


def measure(name: str, batch: int, rounds: int, device: str) -> dict[str, dict[str, float]]:
    """Median ratio of every preset's step to the plain step on one model."""
    torch.manual_seed(0)
    plain = timm.create_model(name, num_classes=100, **MODELS[name]).to(device)
    x = torch.randn(batch, 3, SIZE, SIZE, device=device)
    y = torch.randint(0, 100, (batch,), device=device)
    passport = pp.Passport.generate("Benchmark", secret=bytes(32))
    presets = {
        "signature": pp.PassportConfig.signature(),
        "keyed": pp.PassportConfig.keyed(),
        "keyed, whole batch": pp.PassportConfig.keyed(private_fraction=1.0),
        "paper": pp.PassportConfig.paper(),
    }
    steps = {"plain": stepper(plain, x, y)}
    for label, config in presets.items():
        steps[label] = stepper(pp.passportize(copy.deepcopy(plain), passport, config=config), x, y)
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
            for _ in range(STEPS):
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
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cost.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    results = {}
    for name in arguments.models:
        results[name] = measure(name, arguments.batch, arguments.rounds, arguments.device)
        print(name, json.dumps(results[name], indent=1), flush=True)
    record = {
        "question": "step cost as a multiple of the plain step, paired within each round",
        "command": "python benchmarks/cost.py",
        "machine": f"{platform.machine()}, {arguments.threads} thread(s), {arguments.device}",
        "torch": torch.__version__,
        "batch": arguments.batch,
        "image_size": SIZE,
        "rounds": arguments.rounds,
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
