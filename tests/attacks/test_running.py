"""The table of attacks, and one run of an attack: nothing of the released model changes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from passportize.attacks import Attacked, Means, attack_names, find_attack, rate, run_attack
from passportize.attacks.attack import ATTACKS, KINDS, register_attack
from passportize.attacks.descent import descend, portion
from passportize.errors import InvalidArgument
from passportize.schemes import Finding, Protection, Release, Scheme
from passportize.utils.frozen import frozen_random_state
from tests.support.bench import EVE, OWNER, BenchNet, batches
from tests.support.small_protected import images

EXAMPLE = torch.zeros(4, 1, 8, 8)
HAS = Means(data=batches("train")[:2], steps=2, example_inputs=EXAMPLE)
ALONE = ["disguise", "distil", "fine-tune", "neuron-scale", "noise", "permutation", "projection"]
ALONE += ["prune", "quantise", "sign-flip", "spectral", "cut-layers", "prune-channels"]


def net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return BenchNet().eval()


def test_every_attack_says_what_it_is_and_what_to_expect() -> None:
    assert len(attack_names()) >= 20
    assert set(attack_names("forgery")) | set(attack_names("removal")) == set(attack_names())
    for name in attack_names():
        entry = find_attack(name)
        assert entry.kind in KINDS and entry.summary.endswith(".")
        assert entry.source and entry.expected and set(entry.needs) <= set(Means().__dict__)


@pytest.mark.parametrize("name", ALONE)
def test_the_released_model_and_random_states_stay(name: str) -> None:
    model = net()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    first = run_attack(name, model, HAS)
    assert first.model is not model and not first.model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    assert all(each.requires_grad and each.grad is None for each in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    # The attack did something, and the same seed does the same.
    changed = first.model.state_dict()
    assert any(
        key not in before or not torch.equal(before[key], value) for key, value in changed.items()
    )
    again = run_attack(name, model, HAS).model.state_dict()
    assert all(torch.equal(changed[key], value) for key, value in again.items())


@pytest.mark.parametrize(
    ("name", "has", "options", "message"),
    [
        ("prun", {}, {}, "did you mean prune"),
        ("prune", {}, {"shares": 0.5}, "no option shares; it has share, scope"),
        ("prune", {}, {"share": 1.5}, r"share=1.5 must lie in \[0, 1\]"),
        ("prune", {}, {"scope": "all"}, "scope='all'"),
        ("quantise", {}, {"bits": 1}, "bits=1"),
        ("fine-tune", {"data": ()}, {}, "needs data="),
        ("fine-tune", {}, {"form": "FT"}, "FTLL, FTAL, RTLL, RTAL"),
        ("fine-tune", {}, {"classes": 20}, "FTAL keeps the head"),
        ("fine-tune", {}, {"share": 0.0}, "share=0.0"),
        ("fine-tune", {"data": [(EXAMPLE, torch.arange(4) + 10)]}, {}, "classes=14"),
        ("fine-tune", {"learning_rate": 1e30}, {}, "smaller learning rate"),
        ("overwrite", {}, {}, "needs scheme=, passport="),
        ("closed-form", {"passport": EVE}, {}, "needs scheme="),
        ("noise", {"steps": -1}, {}, "steps=-1"),
        ("kernel-shift", {}, {}, "no weight-standardised convolution"),
        ("stream-shift", {}, {}, "no weight that LayerNorms alone read"),
        ("distil", {}, {"temperature": 0.0}, "temperature=0.0"),
    ],
)
def test_what_cannot_be_done_is_said(name, has, options, message) -> None:
    with pytest.raises(InvalidArgument, match=message):
        run_attack(name, net(), Means(**{**HAS.__dict__, **has}), **options)


def test_a_failed_attack_leaves_the_model() -> None:
    @register_attack("test-fails", kind="removal")
    def fails(model: nn.Module, means: Means) -> Attacked:
        nn.init.zeros_(model.fc.weight)
        torch.manual_seed(1)
        raise RuntimeError("later")

    model, state = net(), torch.get_rng_state()
    kept = model.fc.weight.clone()
    try:
        with pytest.raises(RuntimeError, match="later"):
            run_attack("test-fails", model)
    finally:
        ATTACKS.remove("test-fails")
    assert torch.equal(model.fc.weight, kept) and torch.equal(torch.get_rng_state(), state)


def test_names_and_signatures_are_checked() -> None:
    with pytest.raises(InvalidArgument, match="already"):
        register_attack("prune", kind="removal")(lambda model, means: None)
    with pytest.raises(InvalidArgument, match="lower-case"):
        register_attack("Two words", kind="removal")(lambda model, means: None)
    with pytest.raises(InvalidArgument, match="kind='other'"):
        register_attack("test-x", kind="other")
    with pytest.raises(InvalidArgument, match=r"\(model, means, \*, option=default"):
        register_attack("test-x", kind="removal")(lambda model, means, share: None)
    assert "test-x" not in attack_names()


def test_gradients_are_reset_before_every_step() -> None:
    """Three steps by hand: with gradients that add up the third would be elsewhere."""
    weight, by_hand = nn.Parameter(torch.tensor([1.0])), torch.tensor(1.0)
    data = [(torch.ones(2, 1), torch.zeros(2, dtype=torch.int64))]
    has = Means(steps=3, learning_rate=0.1)
    used = descend([weight], lambda inputs, _: (inputs * weight).square().mean(), data, has)
    rates = [0.1 * (1 + torch.cos(torch.tensor(torch.pi * step / 3))) / 2 for step in range(3)]
    velocity = torch.tensor(0.0)
    for rate_ in rates:
        velocity = 0.9 * velocity + 2 * by_hand
        by_hand = by_hand - rate_ * velocity
    assert used == 6 and weight.grad is None
    assert float(weight.detach()) == pytest.approx(float(by_hand), abs=1e-6)


def test_a_portion_is_so_many_samples() -> None:
    x, y = images("train")
    data = list(zip(x.split(64), y.split(64), strict=True))
    part = portion(data, 0.1, 0, "test")
    assert sum(len(labels) for _, labels in part) == round(0.1 * len(y))
    assert portion(data, 1.0, 0, "test") is data
    kept = {tuple(row.flatten().tolist()) for inputs, _ in part for row in inputs}
    assert len(kept) > 0.95 * round(0.1 * len(y))


class Given(Scheme):
    """Says what it is told to."""

    name = "test-given"

    def __init__(self, owner: bool | None, forger: bool | None) -> None:
        self.says = {"owner": owner, "forger": forger}

    def protect(self, model, passport, example_inputs=None) -> Protection:
        raise NotImplementedError

    def verify(self, suspect, passport, claim, loader=None, released=None) -> Finding:
        return Finding(self.says[claim], 1, 2, 1.0)

    def forge(self, model, passport, factors=None, example_inputs=None):
        return "forger"


@pytest.mark.parametrize(
    ("attack", "options", "owner", "forger", "succeeded"),
    [
        ("prune", {"share": 0.0}, True, None, False),
        ("prune", {"share": 0.0}, False, None, True),
        ("prune", {"share": 0.0}, None, None, True),
        ("closed-form", {}, True, True, True),
        ("closed-form", {}, False, False, False),
        ("closed-form", {}, False, None, False),
    ],
)
def test_what_counts_as_success(attack, options, owner, forger, succeeded) -> None:
    scheme = Given(owner, forger)
    release = Release(scheme, net(), OWNER, "owner")
    has = Means(scheme=scheme, passport=EVE, example_inputs=EXAMPLE)
    rating = rate(release, run_attack(attack, release.model, has, **options), batches("test"))
    assert rating.succeeded is succeeded and rating.owner.bit_accuracy == 0.5


def test_a_worthless_model_is_no_success() -> None:
    model = net()
    with frozen_random_state(), torch.no_grad():
        x, y = images("test")
        classes = model(x).argmax(1)
    release = Release(Given(False, None), model, OWNER, "owner")
    loader = [(x, classes)]
    rating = rate(release, run_attack("prune", model, share=1.0), loader)
    assert rating.before == 100.0 and rating.after < 60 and not rating.succeeded
    assert len(y) == len(classes)
