"""Interrupted at any line, a call has happened whole or not at all, and can be made again."""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Callable

import pytest
import torch
from torch import nn

import passportize as pp
from passportize.layers.model import is_passportized
from passportize.release.claim import claim_of
from tests.support.interruptions import interrupted, lines_of
from tests.support.small_protected import PASSPORT, TinyNet
from tests.support.snapshots import Snapshot

POINTS = 20
"""Of each call; ``benchmarks/robustness/interruptions.py`` takes many more."""

EXAMPLE = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(4)


def attention() -> nn.Module:
    """Norms of a fused kernel, function calls and tensors of its own beside modules."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(1, 16, 4, stride=4)
            self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
            self.head = nn.Linear(16, 4)
            self.scale = nn.Parameter(torch.ones(16))

        def forward(self, x):
            x = self.stem(x).flatten(2).mT
            x = nn.functional.layer_norm(self.block(x), (16,), self.scale)
            return self.head(x.mean(1))

    return Net()


MODELS: dict[str, Callable[[], nn.Module]] = {"convolutions": TinyNet, "attention": attention}


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


def passportized(model: nn.Module) -> object:
    return pp.passportize(model, PASSPORT, example_inputs=EXAMPLE)


def planned(model: nn.Module) -> object:
    return pp.plan(model, example_inputs=EXAMPLE)


@functools.cache
def claim() -> pp.Claim:
    return claim_of(marked("convolutions"))


def verified(model: nn.Module) -> object:
    return pp.verify(model, PASSPORT, claim(), [(EXAMPLE, LABELS)])


def embedded(model: nn.Module) -> object:
    return pp.embed_signature(model, margin=3.0)


def calibrated(model: nn.Module) -> object:
    return pp.embed_signature(model, margin=3.0, calibration=[EXAMPLE])


CALLS: dict[str, tuple[Callable[[nn.Module], object], Callable[[str], nn.Module]]] = {
    "plan": (planned, plain),
    "passportize": (passportized, plain),
    "embed_signature": (embedded, marked),
    "embed_signature, calibrated": (calibrated, marked),
    "unpassportize": (pp.unpassportize, marked),
    "verify": (verified, plain),
}


@pytest.mark.parametrize(
    ("call", "name"),
    # The claim of verify is on one of the models.
    [(call, name) for call in CALLS for name in MODELS if (call, name) != ("verify", "attention")],
)
def test_nothing_has_happened_and_the_call_can_be_made_again(call: str, name: str) -> None:
    act, before = CALLS[call]
    act(copy.deepcopy(before(name)))  # what is kept from the first call makes later ones shorter
    first = copy.deepcopy(before(name))
    count = lines_of(lambda: act(first))
    dice = random.Random(f"{call}, {name}")
    points = sorted(dice.sample(range(1, count + 1), min(count, POINTS)))
    reached = 0
    for point in points:
        model = copy.deepcopy(before(name))
        was = Snapshot.of(model)
        interrupter = interrupted(lambda model=model: act(model), point)
        if not interrupter.place:
            continue  # a cache made it shorter
        reached += 1
        assert not was.differences(Snapshot.of(model)), interrupter.place
        act(model)
        if call in ("passportize", "unpassportize"):
            assert is_passportized(model) is (call == "passportize"), interrupter.place
    assert reached > POINTS / 2


def test_the_snapshot_sees_what_is_left() -> None:
    model = copy.deepcopy(plain("convolutions"))
    was = Snapshot.of(model)
    passportized(model)
    assert {"modules: bn1", "modules: "} <= set(was.differences(Snapshot.of(model)))
    pp.unpassportize(model)
    assert not was.differences(Snapshot.of(model))
    with torch.no_grad():
        assert was.differences(Snapshot.of(model)) == ["process: grad"]
