"""Interrupted at any line, a call has happened whole or not at all, and can be made again."""

from __future__ import annotations

import copy
import random

import pytest
import torch

import passportize as pp
from tests.support.interruptible import PAIRS, interrupt, passportized, plain
from tests.support.snapshots import Snapshot

POINTS = 20
"""Of each call and model; ``benchmarks/robustness/interruptions.py`` takes more."""


@pytest.mark.parametrize(("call", "name"), PAIRS)
def test_nothing_has_happened_and_the_call_can_be_made_again(call: str, name: str) -> None:
    outcomes = list(interrupt(call, name, POINTS, random.Random(f"{call}, {name}")))
    assert len(outcomes) > POINTS / 2
    for outcome in outcomes:
        assert not outcome.differences, outcome.place


def test_the_snapshot_sees_what_is_left() -> None:
    model = copy.deepcopy(plain("convolutions"))
    was = Snapshot.of(model)
    passportized(model)
    assert {"modules: bn1", "modules: "} <= set(was.differences(Snapshot.of(model)))
    pp.unpassportize(model)
    assert not was.differences(Snapshot.of(model))
    with torch.no_grad():
        assert was.differences(Snapshot.of(model)) == ["process: grad"]
