"""The list in docs/results.md: what was measured, and on which page it is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.common.csv_rows import read_rows
from benchmarks.common.paths import RESULTS
from benchmarks.coverage.report import META_CHECKS, REAL_CHECKS, WHOLE, Record, cut, passed
from benchmarks.coverage.rows import read_table
from benchmarks.coverage.timm_suite_page import pairs
from benchmarks.training.timm_page import NOTABLE, TOLERANCE, falling_losses
from passportize.data.sets import SETS

PLACE = "../benchmarks/results"
LIBRARIES = {
    "timm": "models of {}",
    "torchvision": "models of {}",
    "transformers": "vision models of {} that were tried, built small",
}


def overview(stability: Mapping[str, Any]) -> str:
    """One item for each benchmark that has rows or a page of its own."""
    items = (
        *_coverage(),
        _suite(),
        _families(),
        _rates(stability),
        _scripts(),
        *_bench(),
        *_others(),
    )
    return "\n".join(["## What was measured", "", *(f"- {item}" for item in items)])


def covered() -> str:
    """How many models of each library are restored exactly, in one sentence."""
    counts = []
    for library, said in LIBRARIES.items():
        rows = read_table(library, "real")
        exact = _of(passed(rows.values(), REAL_CHECKS), len(rows))
        counts.append(f"{exact} {said.format(_version(library, rows))}")
    return f"Swapped and restored exactly: {', '.join(counts[:-1])} and {counts[-1]}."


def _coverage() -> Iterator[str]:
    """The sweeps of the three libraries."""
    for library, models in LIBRARIES.items():
        meta, real = read_table(library, "meta"), read_table(library, "real")
        on_meta, for_real = passed(meta.values(), META_CHECKS), passed(real.values(), REAL_CHECKS)
        said = (
            f"{_link(f'coverage_{library}.md')}: {_of(on_meta, len(meta))} "
            f"{models.format(_version(library, real))}, planned, swapped and restored exactly "
            f"without values, {_of(for_real, len(real))} for real: outputs and statistics bit for "
            "bit, gradients in every bound weight"
        )
        if library == "timm":
            whole = sum(cut(row) == WHOLE for row in real.values())
            said += (
                f" ({whole:,} of them whole, {len(real) - whole:,} above 150 million parameters "
                "with fewer blocks or channels)"
            )
        yield f"{said}."


def _version(library: str, rows: Mapping[str, Record]) -> str:
    """The library with its version, if all rows name the same one."""
    versions = {
        next((part for part in row["versions"].split(", ") if part.split()[0] == library), library)
        for row in rows.values()
    }
    return versions.pop() if len(versions) == 1 else library


def _suite() -> str:
    found = pairs(read_rows(RESULTS / "timm_suite.csv"))
    alike = sum(fresh["outcome"] == restored["outcome"] for fresh, restored in found)
    return (
        f"{_link('timm_suite.md')}: {len(found)} of timm's own tests (models of at most twelve "
        "million parameters), with restored models and with fresh ones: "
        f"{_of(alike, len(found))} end alike."
    )


def _families() -> str:
    rows = read_rows(RESULTS / "training_timm.csv")
    finite = sum(row["all_finite"] == "yes" for row in rows)
    right, bits = (sum(int(row[column]) for row in rows) for column in ("bits_matched", "bits"))
    falling, level = falling_losses(rows)
    return (
        f"{_link('training_timm.md')}: {len(rows)} models of many families, thirty steps plain "
        "and with passports, nothing tuned for a model: everything finite in "
        f"{_of(finite, len(rows))}, {100 * right / bits:.1f} % of the bits in after the steps; of "
        f"the {falling} whose plain loss falls by more than {NOTABLE}, {level} have a public loss "
        f"that falls at least {100 * (1 - TOLERANCE):.0f} % as far."
    )


def _rates(stability: Mapping[str, Any]) -> str:
    rows = stability["rows"]
    settings = {(row["optimizer"], row["lr"]) for row in rows}
    embedded = [row["bits"] for row in rows if row["preset"] in ("keyed", "signature")]
    return (
        f"[Stability](#stability): {len(settings)} optimizers and rates from harmless to too "
        f"high, {_of(sum(row['finite'] for row in rows), len(rows))} trainings without a NaN, all "
        f"bits in at the end of {_of(sum(share == 1 for share in embedded), len(embedded))} with "
        "`keyed` and `signature`."
    )


def _scripts() -> str:
    rows = read_rows(RESULTS / "train_scripts.csv")
    versions = len({row["script"] for row in rows})
    return (
        f"{_link('train_scripts.md')}: timm's own `train.py`, unedited, of {versions} versions; "
        "what its files hold, in [timm.md](timm.md#what-was-run-with-the-real-trainpy)."
    )


def _bench() -> Iterator[str]:
    """The tables of the bench that were measured."""
    yield (
        f"{_link('bench.md')}: the rows of the paper that are visible, and ours beside them, with "
        "what waits for data."
    )
    for path in sorted(RESULTS.glob("bench_*.json")):
        record = json.loads(path.read_text())
        rows = [row for row in record["rows"] if not row.get("waits")]
        if rows:
            sets = ", ".join(dict.fromkeys(SETS[row["set"]].title for row in rows))
            seeds = len({row["seed"] for row in rows})
            yield (
                f"{_link(f'{path.stem}.md')}: {record['question']} {sets}, "
                f"{'one seed' if seeds == 1 else f'at most {seeds} seeds'}."
            )


def _others() -> Iterator[str]:
    rows = read_rows(RESULTS / "point_cloud_public.csv")
    origins = {row["from"].split(" @ ")[0] for row in rows}
    repositories = sum("/" in origin for origin in origins)
    yield (
        f"{_link('disguises.md')}: disguises that change no output (permuted, rescaled, mirrored "
        "channels), and how they are undone."
    )
    yield (
        f"{_link('point_cloud_public.md')}: {len(rows)} point-cloud models of {repositories} "
        f"public repositories and {len(origins) - repositories} packages."
    )
    yield f"{_link('point_cloud.md')}: a PointNet on KiCad's 3D parts."
    yield (
        f"{_link('few_samples.json')}: what the private loss costs where few samples of a batch "
        "take the private branch, in [method.md](method.md). `point_cloud.md`, and in "
        "`train_scripts.md` the rows `halves-hard-ddp`, are from when `keyed` took the sign loss "
        "at every step; here, at every fourth as now, no accuracy moves by more than the noise."
    )


def _link(name: str) -> str:
    return f"[{name}]({PLACE}/{name})"


def _of(part: int, whole: int) -> str:
    return f"all {whole:,}" if part == whole else f"{part:,} of {whole:,}"
