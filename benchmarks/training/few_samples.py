"""What the private branch's loss costs the public branch, and what its weight does about it.

Question: what does the public branch lose when the private loss counts as much as its own, and what
with the weight that it has by default (`PassportConfig.keyed().private_weight`, and less where it
sees only a few samples, `weight_for`)? A quarter of a batch of 32 is
eight samples. And what would change if the sign loss came at every step, or at every eighth only
(`sign_every`; every fourth by default)? A small convolutional net with batch norm, digits under
heavy noise (so that nothing saturates), trainings from the same start on the same batches,
signature embedded.

    python -m benchmarks.training.few_samples            # about two minutes on one thread
    python -m benchmarks.training.few_samples --smoke    # seconds, nothing is written
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import passportize as pp
from benchmarks.common.paths import RESULTS
from benchmarks.training.short_training import BATCH, train
from passportize.data.digits import load_digits_images
from passportize.layers.joint_forward import weight_for
from passportize.utils.files import write_atomically

OUT = RESULTS / "few_samples.json"
EPOCHS, NOISE, COPIES = 8, 0.6, 4
OFTEN = {"sign_every": 1, "sign_weight": 0.1}
RARELY = {"sign_every": 8, "sign_weight": 0.4}
# Name, private samples of each batch, whether their loss counts in full, settings that differ.
VARIANTS: tuple[tuple[str, int, bool, dict[str, Any]], ...] = (
    ("plain", 0, False, {}),
    ("8 samples, in full", 8, True, {}),
    ("8 samples, as is", 8, False, {}),
    ("8 samples, sign_every=1", 8, False, OFTEN),
    ("8 samples, sign_every=8", 8, False, RARELY),
    ("16 samples, in full", 16, True, {}),
    ("16 samples, as is", 16, False, {}),
    ("whole batch, in full", 32, True, {}),
    ("whole batch, as is", 32, False, {}),
    ("whole batch, sign_every=1", 32, False, OFTEN),
    ("whole batch, sign_every=8", 32, False, RARELY),
)


class Net(nn.Module):
    """Three convolutions with batch norm, mean pooling, a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, stride in ((1, 32, 1), (32, 64, 2), (64, 64, 1)):
            layers += [
                nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[B, 1, 8, 8]`` to class scores ``[B, 10]``."""
        scores: Tensor = self.head(self.body(x).mean((2, 3)))
        return scores


def noisy(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images under Gaussian noise."""
    return images + NOISE * torch.randn(images.shape, generator=generator)


def accuracy(model: nn.Module, which: str | None, images: Tensor, labels: Tensor) -> float:
    """Percent right of one branch, or of a plain model."""
    model.eval()
    with torch.no_grad(), pp.branch(model, which) if which is not None else nullcontext():
        return 100 * float((model(images).argmax(1) == labels).double().mean())


def run(
    samples: int, full: bool, changes: dict[str, Any], seed: int, epochs: int
) -> tuple[float, float | None, float | None]:
    """Train once; public and private accuracy and bits that match, in percent."""
    images, labels = load_digits_images("train")
    clean, answers = load_digits_images("test")
    generator = torch.Generator().manual_seed(10_000)
    test = torch.cat([noisy(clean, generator) for _ in range(COPIES)])
    torch.manual_seed(seed)
    model: nn.Module = Net()
    if samples:
        config = pp.PassportConfig.keyed(private_fraction=samples / BATCH, **changes)
        if full:
            config = replace(config, private_weight=1.0 / weight_for(1.0, BATCH, samples))
        passport = pp.Passport.generate(
            "Benchmark", date="2026-11-28", secret=seed.to_bytes(32, "big")
        )
        pp.passportize(model, passport, config=config, example_inputs=images[:2])
        pp.embed_signature(model)
    train(model, images, labels, noisy, epochs, seed, joint=samples > 0)
    targets = answers.repeat(COPIES)
    if not samples:
        return accuracy(model, None, test, targets), None, None
    return (
        accuracy(model, "public", test, targets),
        accuracy(model, "private", test, targets),
        100 * pp.signature_accuracy(model),
    )


def main() -> None:
    """Run all variants and write means and standard errors over seeds."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="tiny run, nothing is written")
    arguments = parser.parse_args()
    seeds, epochs = (1, 1) if arguments.smoke else (arguments.seeds, EPOCHS)
    torch.set_num_threads(1)
    start = time.process_time()
    found: dict[str, list[tuple[float, float | None, float | None]]] = {
        name: [] for name, *_ in VARIANTS
    }
    for seed, (name, samples, full, changes) in itertools.product(range(seeds), VARIANTS):
        found[name].append(run(samples, full, changes, seed, epochs))
        print(seed, name, found[name][-1], flush=True)
    record = {
        "question": "accuracy in percent where few samples of a batch take the private branch",
        "command": "python -m benchmarks.training.few_samples",
        "torch": torch.__version__,
        "batch": BATCH,
        "epochs": epochs,
        "noise": NOISE,
        "seeds": seeds,
        "seconds": round(time.process_time() - start),
        "variants": {
            name: {
                "public": summary([public for public, _, _ in pairs]),
                "private": summary([private for _, private, _ in pairs if private is not None]),
                "bits": summary([bits for _, _, bits in pairs if bits is not None]),
                "minus_plain": summary(
                    [
                        public - plain
                        for (public, _, _), (plain, _, _) in zip(pairs, found["plain"], strict=True)
                    ]
                ),
            }
            for name, pairs in found.items()
        },
    }
    if not arguments.smoke:
        write_atomically(OUT, (json.dumps(record, indent=2) + "\n").encode())
    print(json.dumps(record["variants"], indent=2))


def summary(values: list[float]) -> dict[str, float] | None:
    """Mean and standard error."""
    if not values:
        return None
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return {"mean": round(statistics.fmean(values), 2), "error": round(error, 2)}


if __name__ == "__main__":
    main()
