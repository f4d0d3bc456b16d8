"""The short table of attacks, and the pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.bench.attacks import summary
from benchmarks.bench.plots import Plot


def removal(attack: str, after: float, matched: int, accepted: bool, seed: int = 0) -> Any:
    lost = 90.0 - after
    return {
        "scheme": "ours",
        "attack": attack,
        "kind": "removal",
        "seed": seed,
        "after": after,
        "lost": lost,
        "matched": matched,
        "total": 100,
        "strength": float(matched),
        "accepted": accepted,
        "broken": not accepted and lost <= 10,
    }


def line(rows: list[Any]) -> str:
    return summary(rows).splitlines()[-1]


def test_the_option_that_serves_the_scheme_worst_is_shown() -> None:
    rows = [
        removal("prune 0.3", 89, 95, True),
        removal("prune 0.5", 85, 80, True),
        removal("prune 0.9", 20, 55, False),
    ]
    # The last one ruins the network: nothing is won by it.
    assert line(rows) == "| prune | 85.0 %, 80 % of bits, accepted |"
    rows.append(removal("prune 0.7", 81, 60, False))
    assert line(rows) == "| prune | 81.0 %, 60 % of bits, **refused** |"


def test_seeds_that_differ_are_counted() -> None:
    rows = [removal("noise", 88, 90, True), removal("noise", 86, 50, False, seed=1)]
    assert line(rows) == "| noise | 87.0 ± 1.4 %, 70 % of bits, **accepted 1 of 2** |"


@pytest.mark.parametrize(
    ("accepted", "said"),
    [
        (True, "88.0 %, 97 % of bits, **forgery accepted**"),
        (False, "88.0 %, 97 % of bits, forgery refused"),
        (None, "88.0 %, 97 % of bits, no verdict"),
    ],
)
def test_of_a_forgery_the_forged_claim_is_shown(accepted: bool | None, said: str) -> None:
    row = removal("erb", 90, 100, True) | {
        "kind": "forgery",
        "broken": accepted is True,
        "forged_accuracy": 88.0,
        "forged_matched": 97,
        "forged_total": 100,
        "forged_strength": 80.0,
        "forged_accepted": accepted,
    }
    assert line([row]) == f"| erb | {said} |"


def test_what_cannot_be_done_is_left_out() -> None:
    rows = [removal("noise", 88, 90, True), {"scheme": "ours", "attack": "erb", "cannot": "why"}]
    assert "erb" not in summary(rows)
    assert summary([]) == ""


@pytest.mark.parametrize("names", [["a", "b"], [f"attack {number}" for number in range(9)]])
def test_words_are_drawn_below_or_beside(names: list[str], tmp_path: Path) -> None:
    rows = [removal(name, 80, 90, True) for name in names]
    Plot("attack", {"after": "left", "strength": "bits"}).draw(rows, tmp_path / "plot.svg")
    assert _shape(tmp_path / "plot.svg")[0] == 2 * 4.6 * 72


def test_a_key_has_panels_of_its_own(tmp_path: Path) -> None:
    rows = [
        {"scheme": "ours", "scope": scope, "share": share, "after": 90.0}
        for scope in ("global", "layer")
        for share in (0.0, 0.5)
    ]
    for panels, lines in ((None, 1), ("scope", 2)):
        Plot("share", {"after": "left"}, panels=panels).draw(rows, tmp_path / "plot.svg")
        assert _shape(tmp_path / "plot.svg")[1] == pytest.approx(lines * 3.4 * 72)


def test_nothing_is_drawn_of_nothing(tmp_path: Path) -> None:
    Plot("attack", {"after": "left"}).draw([{"attack": "a", "cannot": "x"}], tmp_path / "plot.svg")
    assert not (tmp_path / "plot.svg").exists()


def _shape(picture: Path) -> tuple[float, float]:
    """Width and height in points."""
    box = picture.read_text().partition('viewBox="')[2].partition('"')[0].split()
    return float(box[2]), float(box[3])
