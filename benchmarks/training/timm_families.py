"""A few training steps of timm models of many families, plain and with passports, side by side.

Question: does the public loss fall as that of the plain model, do all bits get in, is anything
NaN? Every model is built with timm's own arguments, small enough for one CPU thread, and copied;
the copy is passportized (``keyed``, all settings as they come) and its signature embedded. Both are
trained with the same batches of handwritten digits, the same seed before every step, optimizer and
rate, by one rule: SGD where a norm measures the batch, AdamW elsewhere, five steps of warm-up, then
a cosine. Nothing is tuned for a model. Steps of the two alternate, so that their ratio in processor
time is paired. At the end the few bits that training has moved are put back by a second call of
``embed_signature``, and it is measured how far that moves the weights.

    python -m benchmarks.training.timm_families            # goes on where it stopped
    python -m benchmarks.training.timm_families --report   # the page alone

Rows go to ``results/training_timm.csv`` as they come, the page is ``results/training_timm.md``.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

import passportize as pp
from benchmarks.common.csv_rows import append_row, read_rows
from benchmarks.common.paths import RESULTS
from benchmarks.training.timm_models import MODELS
from benchmarks.training.timm_page import write_page
from passportize.data.digits import load_digits_images
from passportize.layers.model import switch_of
from passportize.release.checkpoint import host_state_dict
from passportize.release.claim import claim_of
from passportize.training.loss import signature_accuracy

TABLE, PAGE = RESULTS / "training_timm.csv", RESULTS / "training_timm.md"
PASSPORT = pp.Passport.generate(
    "training of timm models", date="2026-11-28", secret=bytes(range(32))
)
STEPS, BATCH, SIZE, WARM_UP = 30, 16, 64, 5
RATES = {"sgd": 0.02, "adamw": 2e-3}
WINDOW = 5
"""Steps over which the first and the last losses are averaged."""


@dataclass
class Row:
    """What was measured on one model; ``closed`` is after the second embedding."""

    name: str
    optimizer: str
    built_with: str
    norms: str = ""
    parameters: int = 0
    plain_first: float = 0.0
    plain_last: float = 0.0
    public_first: float = 0.0
    public_last: float = 0.0
    private_last: float = 0.0
    bits_before: float = 0.0
    bits_embedded: int = 0
    change: float = 0.0
    bits_matched: int = 0
    bits: int = 0
    strength: float = 0.0
    closed_matched: int = 0
    closed_change: float = 0.0
    closed_loss: float = 0.0
    step_ratio: float = 0.0
    all_finite: str = ""
    restored: str = ""
    seconds: float = 0.0
    versions: str = ""


def batches() -> list[tuple[Tensor, Tensor]]:
    """The same batches for every model: digits, enlarged, in three channels."""
    images, labels = load_digits_images("train")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    chosen = order[: STEPS * BATCH].split(BATCH)
    size = (SIZE, SIZE)
    return [
        (
            functional.interpolate(images[index], size, mode="bilinear").expand(-1, 3, -1, -1) * 2
            - 1,
            labels[index],
        )
        for index in chosen
    ]


def kind_of(model: nn.Module) -> str:
    """The rule: SGD for models with batch norms, AdamW for the others."""
    measures = any(name.endswith("running_mean") for name, _ in model.named_buffers())
    return "sgd" if measures else "adamw"


def optimizer_of(model: nn.Module, kind: str) -> torch.optim.Optimizer:
    if kind == "adamw":
        return torch.optim.AdamW(model.parameters(), RATES[kind], weight_decay=0.05)
    return torch.optim.SGD(model.parameters(), RATES[kind], momentum=0.9, weight_decay=5e-4)


def share_of_rate(number: int) -> float:
    """Warm-up, then a cosine down to zero."""
    done = max(0, number - WARM_UP) / (STEPS - WARM_UP)
    return min(1.0, (number + 1) / WARM_UP) * (1 + math.cos(math.pi * done)) / 2


class Trained:
    """One model in training, and its losses."""

    def __init__(self, model: nn.Module, kind: str, joint: bool) -> None:
        self.model, self.joint = model.train(), joint
        self.optimizer = optimizer_of(model, kind)
        self.rate = RATES[kind]
        self.public: list[float] = []
        self.private: list[float] = []

    def step(self, images: Tensor, labels: Tensor, number: int) -> float:
        """One step, of which ``number`` came before; returns its processor time."""
        torch.manual_seed(number)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * share_of_rate(number)
        started = time.process_time()
        private = None
        if self.joint:
            parts = pp.joint_loss(self.model, images, labels, functional.cross_entropy)
            total, public, private = parts.total, parts.public, parts.private
        else:
            total = public = functional.cross_entropy(self.model(images), labels)
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()
        used = time.process_time() - started
        self.public.append(float(public.detach()))
        if private is not None:
            self.private.append(float(private.detach()))
        return used

    @property
    def finite(self) -> bool:
        """Whether every loss and every number of the state was."""
        losses = torch.tensor(self.public + self.private)
        weights = all(bool(tensor.isfinite().all()) for tensor in self.model.state_dict().values())
        return bool(losses.isfinite().all()) and weights


def loss_on(model: nn.Module, chosen: list[tuple[Tensor, Tensor]]) -> float:
    """Mean loss of the public branch in training mode, without a step."""
    with torch.no_grad():
        losses = [functional.cross_entropy(model(images), labels) for images, labels in chosen]
    return float(torch.stack(losses).mean())


def measure(name: str, arguments: dict[str, Any]) -> Row:
    """Train one model both ways."""
    started = time.perf_counter()
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **arguments)
    twin = copy.deepcopy(model)
    kind = kind_of(model)
    row = Row(name, kind, ", ".join(f"{key}={value}" for key, value in arguments.items()))
    row.parameters = sum(tensor.numel() for tensor in model.parameters())
    kinds = Counter(site.layer_type.rpartition(".")[2] for site in pp.plan(twin).sites)
    row.norms = "; ".join(f"{norm} {count}" for norm, count in sorted(kinds.items()))
    pp.passportize(twin, PASSPORT)
    row.bits_before = signature_accuracy(twin)
    embedded = pp.embed_signature(twin)
    row.bits_embedded, row.change = embedded.after, embedded.change
    plain, ours = Trained(model, kind, False), Trained(twin, kind, True)
    ratios = []
    for number, (images, labels) in enumerate(batches()):
        pair = [plain, ours] if number % 2 else [ours, plain]
        used = {id(one): one.step(images, labels, number) for one in pair}
        ratios.append(used[id(ours)] / used[id(plain)])
    for label, one in (("plain", plain), ("public", ours)):
        setattr(row, f"{label}_first", statistics.mean(one.public[:WINDOW]))
        setattr(row, f"{label}_last", statistics.mean(one.public[-WINDOW:]))
    row.private_last = statistics.mean(ours.private[-WINDOW:])
    row.step_ratio = statistics.median(ratios[1:])
    verdict = pp.verify(host_state_dict(twin), PASSPORT, claim_of(twin))
    row.bits_matched, row.bits, row.strength = verdict.matched, verdict.total, verdict.strength
    row.all_finite = "yes" if plain.finite and ours.finite else "no"
    closed = pp.embed_signature(twin)
    row.closed_change = closed.change
    row.closed_loss = loss_on(twin, batches()[-WINDOW:])
    twin.eval()
    claim = claim_of(twin)
    switch_of(twin).saved = True
    with torch.no_grad():
        public = twin(images)
        restored = pp.unpassportize(twin)
        row.restored = "yes" if torch.equal(restored(images), public) else "no"
    row.closed_matched = pp.verify(restored, PASSPORT, claim).matched
    row.seconds = time.perf_counter() - started
    row.versions = f"torch {torch.__version__}, timm {timm.__version__}, {pp.__version__}"
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="*", default=list(MODELS))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this long")
    parser.add_argument("--report", action="store_true", help="write the page and nothing else")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    known = {row["name"] for row in read_rows(TABLE)}
    for done, name in enumerate(arguments.names, start=1):
        if arguments.report or time.monotonic() - started > arguments.seconds:
            break
        if name in known:
            continue
        row = measure(name, MODELS[name])
        append_row(TABLE, asdict(row), digits=4)
        print(
            f"{done}/{len(arguments.names)} {name} {row.optimizer}: plain {row.plain_first:.2f} to "
            f"{row.plain_last:.2f}, public {row.public_first:.2f} to {row.public_last:.2f}, "
            f"{row.bits_matched} of {row.bits} bits, {row.seconds:.0f} s",
            flush=True,
        )
    write_page(PAGE, read_rows(TABLE), STEPS, BATCH, SIZE, RATES, WARM_UP)


if __name__ == "__main__":
    main()
