"""The page of a table: its rows over the seeds, and what is not there."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.bench.budgets import Budget
from benchmarks.bench.columns import Row, cases
from benchmarks.pages.markdown import table as markdown
from benchmarks.pages.markdown import wrapped
from passportize.data.sets import SETS

if TYPE_CHECKING:
    from benchmarks.bench.table import Table

__all__ = ["page"]


def page(table: Table, record: dict[str, Any], plot: str) -> str:
    """The Markdown file.

    Args:
        table: What was asked.
        record: What was measured.
        plot: Name of the picture beside the page.
    """
    every = [row for row in record["rows"] if not row.get("waits")]
    rows = [row for row in every if not row.get("cannot")]
    budget = Budget(**record["budget"])
    parts = [
        f"# {table.question}",
        wrapped(
            f"Measured by `{record['command']}` on {record['machine']}, torch {record['torch']}. "
            f"{budget.words()}. {table.about}"
        ),
    ]
    if rows:
        parts += [_table(table, rows), table.below(every), f"![the same as a picture]({plot})"]
    parts += [_missing(table, record)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(table: Table, rows: Sequence[Row]) -> str:
    groups = cases(rows, table.keys)
    # Side by side what differs in the last name alone, in the order in which it was measured.
    ranks = [
        {value: rank for rank, value in enumerate(dict.fromkeys(key[place] for key in groups))}
        for place in range(len(table.keys))
    ]
    order = sorted(
        groups, key=lambda key: [rank[value] for rank, value in zip(ranks, key, strict=True)]
    )
    # Names that are the same in all rows are said once, above the table.
    shown = [
        place for place, name in enumerate(table.keys) if len({row.get(name) for row in rows}) > 1
    ]
    names = list(table.keys)
    same = [
        f"{table.keys[name]}: {_said(name, rows[0].get(name))}"
        for place, name in enumerate(names)
        if place not in shown
    ]
    body = [
        [
            *(_said(names[place], key[place]) for place in shown),
            str(len({row["seed"] for row in own})),
            *(column(own, rows) for column in table.columns.values()),
        ]
        for key in order
        for own in [groups[key]]
    ]
    head = [*(table.keys[names[place]] for place in shown), "seeds", *table.columns]
    above = f"{'; '.join(same)}.\n\n" if same else ""
    return above + markdown(head, body)


def _said(name: str, value: Any) -> str:
    if name in ("set", "target") and value in SETS:
        return SETS[value].title
    if name == "scheme":
        return str(value) if value == "plain" else f"`{value}`"
    if isinstance(value, float):
        return f"{value:g}"
    return "" if value is None else str(value)


def _missing(table: Table, record: dict[str, Any]) -> str:
    """Which cases of the whole table wait for data, were not run, or not to their end."""
    rows: Sequence[Row] = record["rows"]
    waits = sorted({SETS[row["set"]].title for row in rows if row.get("waits")})
    measured = {(row["set"], row["network"], row["norm"], row["scheme"]) for row in rows}
    lines = []
    if waits:
        lines.append(
            f"**Waits for data** (how to get them: [data.md](../../docs/data.md)): "
            f"{', '.join(waits)}."
        )
    not_run = []
    for name, network, norm in itertools.product(table.sets, table.networks, table.norms):
        schemes = [s for s in table.schemes if (name, network, norm, s) not in measured]
        if schemes and SETS[name].title not in waits:
            which = "" if len(schemes) == len(table.schemes) else f" ({', '.join(schemes)})"
            not_run.append(f"{SETS[name].title}, {network}, {norm}{which}")
    begun = [
        {name: row[name] for name in ("set", "network", "norm", "scheme", "seed")}
        for row in rows
        if not row.get("waits")
    ]
    cut = dict.fromkeys(
        f"{SETS[case['set']].title}, {case['network']}, {case['norm']}, {case['scheme']}, seed "
        f"{case['seed']}"
        for case in begun
        if case not in record["finished"]
    )
    if cut:
        lines.append(f"**Not run to the end**, rows are missing: {'; '.join(cut)}.")
    if not_run:
        lines.append(f"**Not run**: {'; '.join(not_run)}.")
    return "\n\n".join(wrapped(line) for line in lines)
