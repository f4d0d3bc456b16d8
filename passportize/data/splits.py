"""Splits of labelled data that are the same on every machine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from passportize.errors import InvalidArgument

__all__ = ["SPLITS", "check_split", "family_split", "select_split", "stratified_split"]

SPLITS = ("train", "test")


def check_split(split: str) -> None:
    """Refuse a split that there is not.

    Raises:
        InvalidArgument: ``split`` is neither ``"train"`` nor ``"test"``.
    """
    if split not in SPLITS:
        raise InvalidArgument(f"split={split!r}: use 'train' or 'test'")


def select_split(split: str, train: Tensor, test: Tensor) -> Tensor:
    """Pick the indices of one split.

    Raises:
        InvalidArgument: ``split`` is neither ``"train"`` nor ``"test"``.
    """
    check_split(split)
    return train if split == "train" else test


def stratified_split(
    labels: Tensor, *, test_fraction: float = 0.2, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Split indices so that each class gives the same share to the test part.

    Args:
        labels: Class of each item, integers ``[N]``.
        test_fraction: Share of each class that goes to the test part, in (0, 1).
        seed: Another seed gives another split; the same one always gives the same.

    Returns:
        Sorted train and test indices; no index is in both, each is in one.

    Raises:
        InvalidArgument: ``test_fraction`` lies outside (0, 1).
    """
    if not 0.0 < test_fraction < 1.0:
        raise InvalidArgument(f"test_fraction={test_fraction}: give a share between 0 and 1")
    generator = torch.Generator().manual_seed(seed)
    train, test = [], []
    for label in torch.unique(labels).tolist():
        members = torch.nonzero(labels == label).flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        cut = round(len(members) * test_fraction)
        test.append(members[:cut])
        train.append(members[cut:])
    return _sorted(train), _sorted(test)


def family_split(
    labels: Tensor, families: Sequence[str], *, test_fraction: float = 0.2, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Split indices so that all items of one family land in the same part.

    Near-duplicates that differ in one number (a connector with 3 and with 4 pins) leak from train
    to test in a random split; here a test item has no sibling in the train part. Per class, whole
    families in random order go to the test part until it holds ``test_fraction`` of the class;
    a class that consists of a single family stays in the train part.

    Args:
        labels: Class of each item, integers ``[N]``.
        families: Family of each item; families are told apart within a class only.
        test_fraction: Share of each class that the test part aims at, in (0, 1).
        seed: Another seed gives another split.

    Returns:
        Sorted train and test indices.

    Raises:
        InvalidArgument: ``test_fraction`` lies outside (0, 1) or the lengths differ.
    """
    if not 0.0 < test_fraction < 1.0:
        raise InvalidArgument(f"test_fraction={test_fraction}: give a share between 0 and 1")
    if len(labels) != len(families):
        raise InvalidArgument(f"{len(labels)} labels but {len(families)} families")
    generator = torch.Generator().manual_seed(seed)
    groups: dict[int, dict[str, list[int]]] = {}
    for index, label in enumerate(labels.tolist()):
        groups.setdefault(int(label), {}).setdefault(families[index], []).append(index)
    train: list[int] = []
    test: list[int] = []
    for _, members in sorted(groups.items()):
        names = sorted(members)
        wanted = test_fraction * sum(len(items) for items in members.values())
        taken = 0
        order = torch.randperm(len(names), generator=generator).tolist()
        for position in order:
            items = members[names[position]]
            # A family is taken when that brings the test part nearer to its share.
            nearer = abs(taken + len(items) - wanted) < abs(taken - wanted)
            if nearer and len(names) > 1:
                test.extend(items)
                taken += len(items)
            else:
                train.extend(items)
    return _sorted([torch.tensor(train)]), _sorted([torch.tensor(test)])


def _sorted(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts).to(torch.int64).sort().values
