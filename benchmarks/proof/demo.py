"""The demo as a committed result.

Question: what does a newcomer see who types ``make demo``? Here with a fixed secret, so that the
run can be repeated; the strangers' are fresh.

    python -m benchmarks.proof.demo                      # writes benchmarks/results/demo.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from rich.console import Console

from benchmarks.common.paths import RESULTS
from benchmarks.common.records import heading
from passportize.demo.showing import run_demo
from passportize.passport.passport import Passport
from passportize.utils.files import write_atomically

OWNER = Passport.generate(
    "Acme Vision", contact="legal@acme.example", date="2026-01-31", secret=bytes(range(32))
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--out", type=Path, default=RESULTS / "demo.json")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        shown = run_demo(
            folder, epochs=arguments.epochs, console=Console(), passport=OWNER
        ).to_dict()
    # Where a run put its files says nothing.
    del shown["files"]
    record = {
        **heading("what does a newcomer see who types make demo?", "benchmarks.proof.demo"),
        "epochs": arguments.epochs,
        "seconds": round(time.perf_counter() - start, 1),
        # On a machine that is shared with other work this is the one that says something.
        "processor_seconds": round(time.process_time(), 1),
        **shown,
    }
    text = json.dumps(record, indent=1) + "\n"
    write_atomically(arguments.out, text.encode(), overwrite=True)


if __name__ == "__main__":
    main()
