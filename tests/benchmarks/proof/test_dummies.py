"""Dummies and what undoes them: ours all of it, the classic aligner what it is said to."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from benchmarks.proof import dummies
from benchmarks.proof.dummies import RECIPES, Recipe, Release
from benchmarks.proof.dummies_page import page

pytestmark = pytest.mark.filterwarnings(
    "ignore::passportize.training.embedding.TrainedWeightsWarning"
)


@functools.cache
def release(name: str) -> Release:
    return Release(name)


def measured(recipe: Recipe, name: str = "resnet") -> dict[str, Any]:
    return release(name).measure(recipe)


def test_the_classic_aligner_undoes_permutations_and_positive_scales() -> None:
    row = measured(RECIPES["permuted, scaled, no dummies"])
    found = row["baseline"]
    assert found["matched"] == found["same entries"] == row["same entries"]
    assert found["read"] == row["read"]
    assert row["plain"] < 0.6 * row["total"]


def test_it_finds_real_channels_among_dummies_that_add_nothing() -> None:
    row = measured(Recipe(("zero", "clique"), 0.5))
    assert row["baseline"]["matched"] == row["baseline"]["same entries"]
    assert row["added"] and row["outputs"] < 1e-5


def test_of_split_channels_it_loses_a_part_and_we_do_not() -> None:
    row = measured(RECIPES["split, 0.5"])
    assert 0.8 < row["baseline"]["matched"] / row["baseline"]["same entries"] < 1
    assert row["aligned"] == row["same entries"] and row["accepted"]


def test_mirrored_channels_are_beyond_it() -> None:
    row = measured(RECIPES["all, disguised"])
    assert row["baseline"]["matched"] < 0.75 * row["baseline"]["same entries"]
    assert row["aligned"] == row["same entries"] and row["accepted"]


def test_mixed_streams_and_heads_are_beyond_it() -> None:
    row = measured(RECIPES["disguised, no dummies"], "vit")
    assert row["baseline"]["matched"] < 0.6 * row["baseline"]["read"]
    assert row["aligned"] == row["same entries"] and row["accepted"]


def test_a_widened_stranger_is_not_accepted() -> None:
    row = measured(RECIPES["stranger, all, disguised"])
    assert row["accepted"] is False
    assert row["aligned"] < 0.6 * row["read"]


def test_a_run_goes_on_with_the_rows_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = dict(list(RECIPES.items())[:2])
    asked: list[Recipe] = []

    class Quick:
        def __init__(self, name: str) -> None:
            self.model = nn.Linear(2, 2)

        def measure(self, recipe: Recipe) -> dict[str, Any]:
            asked.append(recipe)
            row = {"added": len(asked), "outputs": 0.0, "plain": 0, "total": 0, "accepted": True}
            return row | {"baseline": {}, "seconds": 1.0, "baseline seconds": 1.0}

    out = tmp_path / "rows.json"
    monkeypatch.setattr(dummies, "recipes_for", lambda name: some)
    monkeypatch.setattr(dummies, "Release", Quick)
    monkeypatch.setattr(sys, "argv", ["dummies", "--models", "resnet", "--out", str(out)])
    dummies.main()
    record = json.loads(out.read_text())
    assert asked == list(some.values())
    assert out.with_suffix(".md").read_text() == page(record)
    del record["models"]["resnet"]["suspects"][next(iter(some))]
    out.write_text(json.dumps(record))
    dummies.main()
    assert asked[2:] == asked[:1]
    rows = json.loads(out.read_text())["models"]["resnet"]["suspects"]
    assert {which: row["added"] for which, row in rows.items()} == dict(
        zip(some, (3, 2), strict=True)
    )
