"""Calls to be interrupted, and what an interruption leaves: for tests and the benchmark."""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import passportize as pp
from passportize.layers.model import is_passportized, switch_of
from passportize.layers.switch import Pass
from passportize.release.claim import claim_of
from tests.support.interruptions import interrupted, lines_of
from tests.support.small_protected import PASSPORT, TinyNet
from tests.support.snapshots import Snapshot

EXAMPLE = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 4


class Attention(nn.Module):
    """Norms of a fused kernel and a function call beside modules."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 4, stride=4)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 4)
        self.scale = nn.Parameter(torch.ones(16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).mT
        x = nn.functional.layer_norm(self.block(x), (16,), self.scale)
        return self.head(x.mean(1))


MODELS: dict[str, Callable[[], nn.Module]] = {"convolutions": TinyNet, "attention": Attention}


@functools.cache
def plain(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MODELS[name]()


@functools.cache
def marked(name: str) -> nn.Module:
    model = pp.passportize(copy.deepcopy(plain(name)), PASSPORT, example_inputs=EXAMPLE)
    pp.embed_signature(model)
    return model


@functools.cache
def claim() -> pp.Claim:
    return claim_of(marked("convolutions"))


def passportized(model: nn.Module) -> object:
    return pp.passportize(model, PASSPORT, example_inputs=EXAMPLE)


def planned(model: nn.Module) -> object:
    return pp.plan(model, example_inputs=EXAMPLE)


def verified(model: nn.Module) -> object:
    return pp.verify(model, PASSPORT, claim(), [(EXAMPLE, LABELS)])


def embedded(model: nn.Module) -> object:
    return pp.embed_signature(model, margin=3.0)


def calibrated(model: nn.Module) -> object:
    return pp.embed_signature(model, margin=3.0, calibration=[EXAMPLE])


def trained(model: nn.Module) -> object:
    return pp.joint_loss(model, EXAMPLE, LABELS, nn.functional.cross_entropy)


CALLS: dict[str, tuple[Callable[[nn.Module], object], Callable[[str], nn.Module]]] = {
    "plan": (planned, plain),
    "passportize": (passportized, plain),
    "embed_signature": (embedded, marked),
    "embed_signature, calibrated": (calibrated, marked),
    "joint_loss": (trained, marked),
    "unpassportize": (pp.unpassportize, marked),
    "verify": (verified, plain),
}
# The claim of verify is on one of the models.
PAIRS = [
    (call, name) for call in CALLS for name in MODELS if (call, name) != ("verify", "attention")
]


@dataclass(frozen=True)
class Outcome:
    """Where a call was interrupted, how many lines it runs, and what was not as before."""

    place: str
    lines: int
    differences: list[str]


def interrupt(call: str, name: str, points: int, dice: random.Random) -> Iterator[Outcome]:
    """Interrupt a call at some of its lines, each time on a model of its own."""
    act, before = CALLS[call]
    act(copy.deepcopy(before(name)))  # what is kept from the first call makes later ones shorter
    first = copy.deepcopy(before(name))
    count = lines_of(lambda: act(first))
    for point in sorted(dice.sample(range(1, count + 1), min(count, points))):
        model = copy.deepcopy(before(name))
        was = Snapshot.of(model)
        interrupter = interrupted(functools.partial(act, model), point)
        if not interrupter.place:
            continue
        differences = was.differences(Snapshot.of(model))
        if call == "joint_loss":
            # A step moves the statistics and draws; where it stops they may have moved.
            moved = ("values: ", "process: torch")
            differences = [each for each in differences if not each.startswith(moved)]
        if is_passportized(model) and switch_of(model).mode is not Pass.PUBLIC:
            differences.append("switch: mode")
        try:
            act(model)
        except Exception as error:
            differences.append(f"again: {type(error).__name__}: {error}")
        done = is_passportized(model) is (call == "passportize")
        if call in ("passportize", "unpassportize") and not done:
            differences.append("again: it did nothing")
        yield Outcome(interrupter.place, count, differences)
