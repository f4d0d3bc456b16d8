"""One training of a table, and what it left: kept in a folder, so that tables share it."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import passportize as pp
from benchmarks.bench.budgets import Budget
from benchmarks.bench.networks import build
from benchmarks.bench.training import Plain, Training, train
from passportize.data.images import batches
from passportize.data.parts import Part, Parts
from passportize.data.sets import FASHION_FOLDER, load_parts
from passportize.demo.recipe import accuracy
from passportize.schemes.own import Keyed
from passportize.schemes.published import DeepIPR
from passportize.schemes.registry import find_scheme
from passportize.schemes.scheme import Finding, Release, Scheme

__all__ = ["SCHEMES", "Bench", "Case", "Trained", "owner", "stranger"]

_logger = logging.getLogger(__name__)

SCHEMES = ("plain", "paper", "keyed", "signature")
"""Those that every table has."""


@dataclass(frozen=True)
class Case:
    """What is trained.

    Attributes:
        set: Name in :data:`passportize.data.sets.SETS`.
        network, norm: See :mod:`benchmarks.bench.networks`.
        scheme: ``"plain"``, the name of a scheme, or one of its variants here.
        seed: Of weights, order and secrets.
    """

    set: str
    network: str
    norm: str
    scheme: str
    seed: int

    @property
    def key(self) -> dict[str, Any]:
        """As it stands in a row."""
        return asdict(self)


@dataclass(frozen=True)
class Trained:
    """What a training left.

    Attributes:
        model: The plain model, in evaluation mode.
        release: What the owner keeps with it; None without protection.
        training: How it went.
        seconds: What it took, wall clock.
    """

    model: nn.Module
    release: Release | None
    training: Training
    seconds: float


class Bench:
    """Data and trained models of one run.

    Args:
        budget: How much is spent.
        root: Where sets lie that no package brings.
        folder: Where trained models are kept; read back without suspicion, so one's own.
        place: Device.
    """

    def __init__(self, budget: Budget, root: str | None, folder: Path, place: str = "cpu") -> None:
        self.budget, self.root, self.folder, self.place = budget, root, folder, place
        self._parts: dict[str, Parts] = {}

    def parts(self, name: str) -> Parts:
        """A set, as much of it as the budget has.

        Raises:
            DatasetError: It is not there.
        """
        if name not in self._parts:
            root = self.root
            if name.startswith("fashion") and not (Path(root or "") / FASHION_FOLDER).is_dir():
                root = None  # where its package puts it
            whole = load_parts(name, root, points=self.budget.points)
            self._parts[name] = whole.at_most(self.budget.images, self.budget.test_images)
        return self._parts[name]

    def test(self, name: str) -> list[Part]:
        """The test part of a set, in batches on the device."""
        return self.batched(self.parts(name).test, 500)

    def batched(self, part: Part, size: int) -> list[Part]:
        """Some items in batches on the device."""
        return [(x.to(self.place), y.to(self.place)) for x, y in batches(*part, size)]

    def trained(self, case: Case, triggers: Part | None = None) -> Trained:
        """A trained model, from the folder where it was trained before.

        Args:
            case: What to train.
            triggers: What to train in beside the set.
        """
        budget = self.budget
        name = (
            f"{case.set}_{case.network}_{case.norm}_{case.scheme}_{case.seed}_{budget.width:g}_"
            f"{budget.epochs}_{budget.images}_{budget.batch}_{triggers is not None}"
        )
        path = self.folder / f"{name.replace(', ', '-').replace(' ', '-')}.pt"
        if path.exists():
            model, claim, training, seconds = torch.load(
                path, weights_only=False, map_location=self.place
            )
            return Trained(model, self._release(case, model, claim), training, seconds)
        parts = self.parts(case.set)
        start = time.perf_counter()
        model = build(
            case.network, case.norm, budget.width, parts.train[0], parts.classes, case.seed
        ).to(self.place)
        scheme = scheme_of(case.scheme)
        protection = (
            Plain(model)
            if scheme is None
            else scheme.protect(model, owner(case.seed), parts.train[0][:4].to(self.place))
        )
        training = train(protection, parts, budget, case.seed, triggers=triggers)
        release = protection.release()
        model = protection.model if release is None else release.model
        seconds = time.perf_counter() - start
        _logger.info("%s: %.1f %% in %.0f s", name, training.validation, seconds)
        self.folder.mkdir(parents=True, exist_ok=True)
        claim = None if release is None else release.claim
        kept = path.with_suffix(".part")
        torch.save((model, claim, training, seconds), kept)
        kept.replace(path)
        return Trained(model.eval(), release, training, seconds)

    def finding(self, trained: Trained, name: str) -> Finding:
        """What the owner's claim is worth in the released model itself, measured on a set."""
        test = self.parts(name).test
        if trained.release is None:
            public = accuracy(trained.model, *test)
            return Finding(None, 0, 0, 0.0, public_accuracy=public)
        return trained.release.verify(trained.model, self.test(name))

    def _release(self, case: Case, model: nn.Module, claim: Any) -> Release | None:
        scheme = scheme_of(case.scheme)
        return None if scheme is None else Release(scheme, model, owner(case.seed), claim)


_KEYED = {"keyed, half batch": 0.5, "keyed, whole batch": 1.0}
"""Variants of ``keyed`` by the share of a batch that takes the private branch."""


def scheme_of(name: str) -> Scheme | None:
    """A scheme by its name or that of a variant; None for ``"plain"``."""
    if name == "plain":
        return None
    if name == "deepipr, own statistics":
        return DeepIPR(own_statistics=True)
    if name in _KEYED:
        return Keyed(private_fraction=_KEYED[name])
    return find_scheme(name)


def owner(seed: int) -> pp.Passport:
    """Whoever trained the models of a seed; a secret that is a number, so that runs repeat."""
    return _passport("Owner", 2**200 + seed)


def stranger(seed: int) -> pp.Passport:
    """Somebody else, for each seed another."""
    return _passport("Stranger", 2**201 + seed)


def _passport(name: str, number: int) -> pp.Passport:
    return pp.Passport.generate(name, date="2026-01-01", secret=number.to_bytes(32, "big"))
