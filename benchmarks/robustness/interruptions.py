"""What is left of a model when a call is interrupted: nothing, at any of many lines.

`plan`, `passportize`, `embed_signature`, `unpassportize`, `joint_loss` and `verify` are interrupted
by a KeyboardInterrupt at lines of the library drawn at random. Afterwards model and process must be
as they were before the call, and the call made again must end.

    python -m benchmarks.robustness.interruptions   # writes results/interruptions.json and .md
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.paths import RESULTS
from benchmarks.common.records import heading, write_record
from tests.support.interruptible import PAIRS, Outcome, interrupt

POINTS = 200


def table(record: dict[str, Any]) -> str:
    """The results as Markdown."""
    rows = record["calls"]
    points, faults = (sum(row[key] for row in rows.values()) for key in ("points", "faults"))
    lines = [
        "# Interrupted anywhere",
        "",
        f"`{record['command']}`; {record['machine']}, torch {record['torch']}. {points:,} "
        f"interruptions, {faults} of which left something changed or a call that could not be made "
        "again.",
        "",
        "| call | model | lines that it runs | interrupted at | faults |",
        "|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        call, model = name.rsplit(", ", 1)
        lines.append(
            f"| `{call}` | {model} | {row['lines']:,} | {row['points']} | {row['faults']} |"
        )
    return "\n".join(lines) + "\n"


def measure(call: str, model: str, points: int) -> dict[str, Any]:
    """One call on one model, interrupted at that many lines."""
    outcomes: list[Outcome] = list(interrupt(call, model, points, random.Random(0)))
    faults = [outcome for outcome in outcomes if outcome.differences]
    return {
        "lines": outcomes[0].lines if outcomes else 0,
        "points": len(outcomes),
        "faults": len(faults),
        "where": [f"{outcome.place}: {', '.join(outcome.differences)}"[:300] for outcome in faults],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=POINTS, help="of each call and model")
    parser.add_argument("--out", type=Path, default=RESULTS / "interruptions.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = {
        **heading(
            "what is left of a model when a call is interrupted",
            "benchmarks.robustness.interruptions",
        ),
        "calls": {},
    }
    for call, model in PAIRS:
        record["calls"][f"{call}, {model}"] = measure(call, model, arguments.points)
        write_record(arguments.out, record, table(record))
    print(table(record))


if __name__ == "__main__":
    main()
