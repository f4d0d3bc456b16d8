"""Three parts of a set, and all sets by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from passportize.data.parts import Parts
from passportize.data.sets import SETS, load_parts
from passportize.errors import DatasetError, InvalidArgument


def numbered(classes: int = 4, each: int = 20) -> Parts:
    """Items that are numbers, so that one sees where each went."""
    labels = torch.arange(classes).repeat(each)
    items = torch.arange(len(labels)).float()[:, None]
    return Parts.hold_out("numbers", (items, labels), (items + 1000, labels))


def items(parts: Parts) -> list[list[float]]:
    return [part[0].flatten().tolist() for part in (parts.train, parts.validation, parts.test)]


def test_nothing_is_in_two_parts() -> None:
    train, validation, test = items(numbered())
    assert sorted(train + validation) == list(range(80)) and len(validation) == 8
    assert not set(test) & set(train + validation)
    assert numbered().validation[1].bincount().tolist() == [2] * 4
    assert items(numbered()) == [train, validation, test]


def test_fewer_items() -> None:
    few = numbered().at_most(40, 10)
    assert [len(part) for part in items(few)] == [36, 4, 10]
    assert items(few) == items(numbered().at_most(40, 10))
    for part, whole in zip(items(few), items(numbered()), strict=True):
        assert set(part) <= set(whole)
    assert items(numbered().at_most(10**6)) != [] and len(items(numbered().at_most(10**6))[0]) == 72


def test_some_classes() -> None:
    half = numbered().of_classes((3, 1), "half")
    assert half.classes == 2 and half.name == "half"
    for part in (half.train, half.validation, half.test):
        old = part[0].flatten().long() % 1000 % 4
        assert torch.equal(torch.tensor([9, 1, 9, 0])[old], part[1])


def test_standardised_by_the_train_part() -> None:
    moved = numbered().standardised()
    assert abs(float(moved.train[0].mean())) < 1e-5 and float(
        moved.train[0].std()
    ) == pytest.approx(1)
    assert float(moved.test[0].mean()) > 10  # by the train part's numbers, not by its own


def test_a_class_that_nothing_is_trained_on() -> None:
    with pytest.raises(InvalidArgument, match="lacks"):
        Parts.hold_out(
            "x", (torch.zeros(4), torch.zeros(4).long()), (torch.zeros(1), torch.ones(1))
        )


def test_digits_and_shapes() -> None:
    digits, shapes = load_parts("digits"), load_parts("shapes", points=16)
    assert digits.classes == 10 and digits.train[0].shape[1:] == (1, 8, 8)
    assert len(digits.train[1]) + len(digits.validation[1]) == 1438
    assert shapes.train[0].shape[1:] == (16, 3)


@pytest.mark.parametrize(
    "name", sorted(set(SETS) - {"digits", "digits-0-4", "digits-5-9", "shapes"})
)
def test_a_set_that_is_not_there_says_how_to_get_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(DatasetError, match=r"download|get |install"):
        load_parts(name, tmp_path / "nowhere")


def test_an_unknown_set() -> None:
    with pytest.raises(InvalidArgument, match="use one of caltech101"):
        load_parts("imagenet")
