"""The page about the coverage sweep: counts, norm classes, what is not exact, times."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

Record = Mapping[str, str]
WHOLE = "default"

REAL_CHECKS = {
    "public_eval_exact": "public output bit-equal, eval",
    "public_train_exact": "public output and statistics bit-equal, train",
    "private_differs": "private output differs and is finite",
    "gradients": "joint backward reaches every bound weight and private parameter",
    "keys_unchanged": "host's state-dict keys unchanged",
    "restored": "restored exactly",
}
TITLES = {"transformers": "# Vision models of transformers, small"}
SIZES = {
    "transformers": "*meta*: built without values; plan, swap, restore. *real*: built with values "
    "from the same small config (`tests/support/transformers_models.py`), "
}
"""What is said of a library whose models are not built by name."""
META_CHECKS = {name: REAL_CHECKS[name] for name in ("keys_unchanged", "restored")}


def write_report(
    library: str, meta: Mapping[str, Record], real: Mapping[str, Record], path: Path
) -> None:
    """Write the page.

    Args:
        library: Where the names are from.
        meta: Rows of the pass on the meta device, by model name.
        real: Rows of the pass with outputs and gradients, by model name.
        path: Where to write.
    """
    names = sorted({*meta, *real})
    option = "" if library == "timm" else f" with `--library {library}`"
    lines = [
        TITLES.get(library, f"# Every model name of {library}"),
        "",
        f"Made by `python -m benchmarks.coverage.coverage meta`, `real`, `report`{option}; the "
        f"rows are in `coverage_{library}_meta.csv` and `coverage_{library}.csv`. Versions: "
        f"{_versions([*meta.values(), *real.values()])}.",
        "",
        SIZES.get(
            library,
            "*meta*: built at full size without values; plan, swap, restore. *real*: built with "
            "values, at 64 or 128 pixels where the model allows it, models above 150 million "
            "parameters smaller where their builder takes an argument for it (column "
            "`built_with`, counted below), ",
        )
        + "a batch of 2 public and 2 private samples. Zero-initialised parameters get small random "
        "values first, since the output of many fresh models is all zeros otherwise.",
        "",
        "| | meta | real |",
        "|---|---|---|",
        f"| models measured | {len(meta)} | {len(real)} |",
        f"| all checks passed | {passed(meta.values(), META_CHECKS)} "
        f"| {passed(real.values(), REAL_CHECKS)} |",
        f"| stopped with an error | {_errors(meta.values())} | {_errors(real.values())} |",
    ]
    for check, text in REAL_CHECKS.items():
        on_meta = _count(meta.values(), check) if check in META_CHECKS else ""
        lines.append(f"| {text} | {on_meta} | {_count(real.values(), check)} |")
    lines += [
        "",
        *_built(real),
        "",
        *_sites(meta),
        "",
        *_times(meta, real),
        "",
        *_kinds(meta, real),
        "",
    ]
    lines += _failures(names, meta, real)
    path.write_text("\n".join(lines) + "\n")


def passed(rows: Iterable[Record], checks: Mapping[str, str]) -> int:
    """How many models passed all checks."""
    return sum(_is_exact(row, checks) for row in rows)


def _is_exact(row: Record, checks: Mapping[str, str]) -> bool:
    # The signature preset has no private branch to compare.
    return not row["error"] and all(
        row[check] == "yes" or (check == "private_differs" and row["preset"] == "signature")
        for check in checks
    )


def cut(row: Record) -> str:
    """How a model was built for real, or that it is whole."""
    # The size of the pictures takes no block and no channel away.
    return re.sub(r"(, )?\bimg_size=\d+", "", row["built_with"]) or WHOLE


def _errors(rows: Iterable[Record]) -> int:
    return sum(bool(row["error"]) for row in rows)


def _count(rows: Iterable[Record], check: str) -> str:
    said = [row[check] for row in rows if row[check]]
    return f"{sum(word == 'yes' for word in said)} of {len(said)}" if said else ""


def _versions(rows: Iterable[Record]) -> str:
    return "; ".join(sorted({row["versions"] for row in rows if row["versions"]}))


def _built(real: Mapping[str, Record]) -> list[str]:
    names: dict[str, list[str]] = defaultdict(list)
    for name, row in real.items():
        names[cut(row)].append(name)
    lines = ["## Built with (real)", "", "| arguments | models | |", "|---|---|---|"]
    for arguments in sorted(names, key=lambda key: -len(names[key])):
        few = names[arguments] if len(names[arguments]) <= 6 else []
        listed = ", ".join(f"`{name}`" for name in few)
        lines.append(f"| {arguments} | {len(names[arguments])} | {listed} |")
    return lines


def _sites(meta: Mapping[str, Record]) -> list[str]:
    rows = [row for row in meta.values() if not row["error"]]
    total = {
        key: sum(int(row[key]) for row in rows)
        for key in ("norms", "bound", "statistics", "skipped", "unreached", "bits")
    }
    free = sum(row["preset"] == "signature" for row in rows)
    methods: dict[str, int] = defaultdict(int)
    for row in rows:
        methods[row["method"]] += 1
    listed = ", ".join(f"{name} {count}" for name, count in sorted(methods.items()))
    return [
        "## Sites (of the models on meta)",
        "",
        f"{total['norms']:,} sites: {total['bound']:,} bound, {total['statistics']:,} with private "
        f"statistics only, {total['skipped']:,} skipped, {total['unreached']:,} unreached; "
        f"{total['bits']:,} bits. {free} models have no norm and carry the signature in their "
        f"weights. How the graph was read: {listed}.",
    ]


def _times(meta: Mapping[str, Record], real: Mapping[str, Record]) -> list[str]:
    lines = [
        "## Seconds and memory",
        "",
        "Median (and 95th percentile) over models, seconds of processor time, one thread (rows "
        "whose `clock` is not `cpu` are left out). *surgery* is `passportize()`: plan and swap.",
        "",
        "| | models | build | plan | surgery | restore | surgery / build |",
        "|---|---|---|---|---|---|---|",
    ]
    for label, rows in (("meta", meta), ("real", real)):
        kept = [row for row in rows.values() if not row["error"] and row["clock"] == "cpu"]
        if len(kept) < 2:
            continue
        cells = [
            _spread([float(row[f"{step}_s"]) for row in kept])
            for step in ("build", "plan", "passportize", "restore")
        ]
        ratio = _spread([float(row["passportize_s"]) / float(row["build_s"]) for row in kept])
        lines.append(f"| {label} | {len(kept)} | {' | '.join(cells)} | {ratio} |")
    kept = [row for row in real.values() if not row["error"]]
    if len(kept) >= 2:
        extra = [int(row["surgery_peak_mib"]) - int(row["build_peak_mib"]) for row in kept]
        lines += [
            "",
            f"Planning raised the peak memory of the process by {_spread(extra, 0)} MiB above "
            f"that of building the model; largest peak of a whole row: "
            f"{max(int(row['peak_mib']) for row in kept):,} MiB.",
        ]
    return lines


def _spread(values: list[float] | list[int], digits: int = 3) -> str:
    high = statistics.quantiles(values, n=20)[-1]
    return f"{statistics.median(values):.{digits}f} ({high:.{digits}f})"


def _kinds(meta: Mapping[str, Record], real: Mapping[str, Record]) -> list[str]:
    instances: dict[str, int] = defaultdict(int)
    models: dict[str, list[str]] = defaultdict(list)
    for name, row in meta.items():
        for entry in filter(None, row["kinds"].split("; ")):
            kind, _, count = entry.rpartition(" ")
            instances[kind] += int(count)
            models[kind].append(name)
    lines = [
        "## By class",
        "",
        "| class | instances | models | exact on meta | measured for real | exact for real |",
        "|---|---|---|---|---|---|",
    ]
    for kind in sorted(instances, key=lambda key: -instances[key]):
        names = models[kind]
        measured = [real[name] for name in names if name in real]
        lines.append(
            f"| {kind} | {instances[kind]:,} | {len(names)} "
            f"| {passed([meta[name] for name in names], META_CHECKS)} "
            f"| {len(measured)} | {passed(measured, REAL_CHECKS)} |"
        )
    return lines


def _failures(
    names: list[str], meta: Mapping[str, Record], real: Mapping[str, Record]
) -> list[str]:
    lines = ["## What is not exact", ""]
    for label, rows, checks in (("meta", meta, META_CHECKS), ("real", real, REAL_CHECKS)):
        for name in names:
            row = rows.get(name)
            if row is None or _is_exact(row, checks):
                continue
            wrong = [
                f"{check}: {row[check] or 'not reached'}" for check in checks if row[check] != "yes"
            ]
            lines.append(f"- `{name}` ({label}): {row['error'] or '; '.join(wrong)}")
    if len(lines) == 2:
        lines.append("Nothing among the rows measured.")
    return [*lines, "", *_reasons(meta)]


def _reasons(meta: Mapping[str, Record]) -> list[str]:
    norms: dict[str, int] = defaultdict(int)
    models: dict[str, list[str]] = defaultdict(list)
    for name, row in meta.items():
        for entry in filter(None, row["reasons"].split(" | ")):
            count, _, reason = entry.partition(" x ")
            if reason:
                norms[reason] += int(count)
                models[reason].append(name)
    lines = [
        "## Norms that carry no bits, and why",
        "",
        "| reason | norms | models |",
        "|---|---|---|",
    ]
    for reason in sorted(norms, key=lambda key: -norms[key]):
        listed = ", ".join(f"`{name}`" for name in models[reason][:6])
        more = len(models[reason]) - 6
        listed += f" and {more} more" if more > 0 else ""
        lines.append(f"| {reason} | {norms[reason]:,} | {listed} |")
    return lines
