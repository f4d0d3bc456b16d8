"""The three parts of a labelled set: to train on, to choose by, to measure on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from passportize.data.splits import stratified_split
from passportize.errors import InvalidArgument

__all__ = ["Part", "Parts"]

Part = tuple[Tensor, Tensor]
"""Inputs ``[N, ...]`` and labels ``[N]``."""


@dataclass(frozen=True, eq=False)
class Parts:
    """A labelled set in three parts; no item is in two of them.

    Attributes:
        name: What the data are, for reports.
        classes: Number of classes.
        train: What is trained on.
        validation: What checkpoints are chosen by.
        test: What is reported, and nothing is chosen by.
    """

    name: str
    classes: int
    train: Part
    validation: Part
    test: Part

    @classmethod
    def hold_out(
        cls, name: str, train: Part, test: Part, *, share: float = 0.1, seed: int = 0
    ) -> Parts:
        """Take the validation part out of the train part, the same share of each class.

        Args:
            name: Of the set.
            train: Inputs and labels that the set has for training.
            test: Those that it has for the test.
            share: Of the train part, in (0, 1).
            seed: Of the split.

        Raises:
            InvalidArgument: ``share`` is no share, or there are labels that the train part lacks.
        """
        classes = int(train[1].max()) + 1
        if int(test[1].max()) >= classes:
            raise InvalidArgument(f"{name}: the test part has a class that the train part lacks")
        kept, chosen = stratified_split(train[1], test_fraction=share, seed=seed)
        return cls(name, classes, _pick(train, kept), _pick(train, chosen), test)

    def standardised(self) -> Parts:
        """Every input less the mean of the train part, over its deviation: one number each."""
        mean, deviation = self.train[0].mean(), self.train[0].std().clamp(min=1e-12)

        def moved(part: Part) -> Part:
            return (part[0] - mean) / deviation, part[1]

        return replace(
            self,
            train=moved(self.train),
            validation=moved(self.validation),
            test=moved(self.test),
        )

    def at_most(self, train: int | None = None, test: int | None = None, seed: int = 0) -> Parts:
        """Fewer items, drawn at random and always the same; validation shrinks like train.

        Args:
            train: Items to train on and to choose by, together; None for all.
            test: Items to test on; None for all.
            seed: Of the draw.
        """
        whole = len(self.train[1]) + len(self.validation[1])
        share = 1.0 if train is None else min(1.0, train / whole)

        def fewer(part: Part, count: int) -> Part:
            generator = torch.Generator().manual_seed(seed)
            return _pick(part, torch.randperm(len(part[1]), generator=generator)[:count])

        return replace(
            self,
            train=fewer(self.train, max(1, round(share * len(self.train[1])))),
            validation=fewer(self.validation, max(1, round(share * len(self.validation[1])))),
            test=fewer(self.test, len(self.test[1]) if test is None else test),
        )

    def of_classes(self, chosen: Sequence[int], name: str) -> Parts:
        """Only some classes, numbered anew in the order given."""
        numbers = torch.full((self.classes,), -1, dtype=torch.int64)
        numbers[list(chosen)] = torch.arange(len(chosen))

        def only(part: Part) -> Part:
            labels = numbers[part[1]]
            kept = labels >= 0
            return part[0][kept], labels[kept]

        return Parts(name, len(chosen), only(self.train), only(self.validation), only(self.test))


def _pick(part: Part, index: Tensor) -> Part:
    return part[0][index], part[1][index]
