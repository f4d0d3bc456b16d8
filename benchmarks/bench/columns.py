"""What a column of a table says of the rows of one case, over its seeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

__all__ = [
    "Column",
    "Measured",
    "Row",
    "accepted",
    "bits",
    "cases",
    "least",
    "mean",
    "minus_plain",
    "spread",
]

Row = Mapping[str, Any]
Measured = Iterable[tuple[dict[str, Any], Callable[[], dict[str, Any]]]]
"""What tells rows of one case apart, and a function that measures each."""
Column = Callable[[Sequence[Row], Sequence[Row]], str]
"""Given the rows of one case and all rows of the table."""


def cases(rows: Iterable[Row], names: Iterable[str]) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by what they say under some names, in the order in which they were measured."""
    names = tuple(names)
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row.get(name) for name in names), []).append(row)
    return found


def spread(values: Sequence[float], digits: int = 2, sign: bool = False) -> str:
    """Mean and standard deviation; nothing where there is no value."""
    if not values:
        return ""
    text = f"{statistics.fmean(values):{'+' if sign else ''}.{digits}f}"
    return f"{text} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else text


def mean(name: str, digits: int = 2) -> Column:
    """Mean and standard deviation of a number."""

    def of(rows: Sequence[Row], every: Sequence[Row]) -> str:
        return spread([row[name] for row in rows if row.get(name) is not None], digits)

    return of


def least(name: str, digits: int = 0) -> Column:
    """The smallest over the seeds."""

    def of(rows: Sequence[Row], every: Sequence[Row]) -> str:
        found = [row[name] for row in rows if row.get(name) is not None]
        return f"{min(found):.{digits}f}" if found else ""

    return of


def bits(matched: str = "matched", total: str = "total") -> Column:
    """The share of bits that match, and of how many."""

    def of(rows: Sequence[Row], every: Sequence[Row]) -> str:
        found = [row for row in rows if row.get(total)]
        if not found:
            return ""
        share = spread([100 * row[matched] / row[total] for row in found])
        return f"{share} of {found[0][total]:,}"

    return of


def accepted(name: str = "accepted") -> Column:
    """How many of the seeds a judge accepts."""

    def of(rows: Sequence[Row], every: Sequence[Row]) -> str:
        found = [row[name] for row in rows if row.get(name) is not None]
        return f"{sum(map(bool, found))} of {len(found)}" if found else ""

    return of


def minus_plain(name: str, *keys: str) -> Column:
    """The same less that of the plain model of the same seed, mean and standard deviation.

    Args:
        name: Of the number.
        *keys: What both rows have in common beside the seed.
    """

    def of(rows: Sequence[Row], every: Sequence[Row]) -> str:
        if not rows or rows[0]["scheme"] == "plain":
            return ""
        plain = {
            tuple(row[key] for key in (*keys, "seed")): row[name]
            for row in every
            if row["scheme"] == "plain" and row.get(name) is not None
        }
        gaps = [
            row[name] - plain[at]
            for row in rows
            if (at := tuple(row[key] for key in (*keys, "seed"))) in plain
        ]
        return spread(gaps, sign=True)

    return of
