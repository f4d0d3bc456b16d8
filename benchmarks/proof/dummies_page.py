"""The page of ``dummies``: what came back of each kind, and all rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["page"]

_FAMILIES = {
    "permuted, scaled, no dummies": "permuted, scaled",
    "disguised, no dummies": "disguised",
    "zero": "zero",
    "clique": "clique",
    "split": "split",
    "all": "all three",
    "all, permuted, scaled": "all, permuted, scaled",
    "all, disguised": "all, disguised",
}
"""What is said of each kind of suspect in the first table; shares of one kind are together."""


def page(record: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    models: Mapping[str, Any] = record["models"]
    verdicts: dict[bool, list[bool]] = {True: [], False: []}
    for model in models.values():
        for which, row in model["suspects"].items():
            verdicts[which.startswith("stranger")].append(row["accepted"] is True)
    strangers, copies = verdicts[True], verdicts[False]
    lines = [
        "# Dummy channels, taken out again",
        "",
        f"`{record['command']}`; {record['machine']}, torch {record['torch']}, timm "
        f"{record['timm']}. Models drawn at random and marked in closed form: small ones, and "
        "four of timm at full size. "
        f"{sum(copies)} of {len(copies)} copies are accepted, and "
        f"{sum(strangers)} of {len(strangers)} strangers.",
        "",
        "## What comes back",
        "",
        "Bits that match, in percent of those that match in the undisguised release on the same "
        "entries, the worst of all shares: once dummies and disguise were undone / by the classic "
        "aligner. Chance is what random bits would be.",
        "",
        "| model | parameters | " + " | ".join(_FAMILIES.values()) + " | chance |",
        "|---" * (len(_FAMILIES) + 3) + "|",
    ]
    for name, model in models.items():
        cells = [name, f"{model['parameters'] / 1e6:.2g} M"]
        for family in _FAMILIES:
            rows = [row for which, row in model["suspects"].items() if _family(which) == family]
            both = f"{_worst(map(_ours, rows))} / {_worst(map(_classic, rows))}"
            cells.append(both if rows else "not measured")
        read = [row for row in model["suspects"].values() if "aligned" in row]
        cells.append(f"{50 * read[0]['read'] / read[0]['same entries']:.0f}" if read else "")
        lines.append(f"| {' | '.join(cells)} |")
    for name, rows in record["waiting"].items():
        lines += ["", f"Not measured yet, of {name}: {'; '.join(rows)}."]
    lines += [
        "",
        "The classic aligner (`benchmarks/proof/permutation_aligner.py`) knows permutations and "
        "positive scales. It assigns the released rows of each layer to the suspect's by their "
        "correlation, in the order of the forward pass and twice more with the readers, picks as "
        "many channels as were released, and carries places and sizes to the readers. So it finds "
        "what was permuted and rescaled exactly, and real channels among dummies that nothing "
        "reads or that cancel: these two kinds alone are no obstacle for it. Of a split channel "
        "it keeps one part, whichever, and the readers lose what the other brought; most bits "
        "outlive that. Mirrored channels and mixed ones (heads, residual streams, bottlenecks), "
        "which the full disguise has, it does not find. It looks at all entries, also at those "
        "from which bits are read then. So its bits measure what comes back and are no evidence: "
        "the stranger of mobilenetv2_035 has far more than half of them. With noise and no "
        "disguise it is about level with ours, and ahead on mobilenetv2_035, which has linear "
        "bottlenecks.",
        "",
        "## All rows",
        "",
        "Added: channels that the attack has put in, at a share of those that are there (0.2 of "
        "each kind, one after the other, where none is given). Outputs: largest difference to the "
        "release, relative to its largest output. Plain: bits of the tensors that still have the "
        "released shape, as they stand, of all that are there. Aligned: bits once dummies and "
        "disguise were undone, on entries that no alignment looks at, of those that the "
        "undisguised release has there, of all; classic: those of the classic aligner on the same "
        "entries. Where the plain bits suffice for a verdict they decide, and the others are read "
        f"for this page alone. Noise is {record['noise']:.0%} of every row, below the dummies or "
        "on top. Seconds of processor time: of both readings, and of the classic aligner.",
        "",
        "| model | suspect | added | outputs | plain | accepted | aligned / same entries, of "
        "| strength | likeness | classic | seconds |",
        "|---" * 11 + "|",
    ]
    for name, model in models.items():
        lines += [_line(name, which, row) for which, row in model["suspects"].items()]
    return "\n".join(lines) + "\n"


def _family(which: str) -> str:
    """The kind of a suspect, without the share."""
    kind, _, share = which.rpartition(", ")
    return kind if share.replace(".", "").isdigit() else which


def _ours(row: Mapping[str, Any]) -> float | None:
    return row["aligned"] / row["same entries"] if "aligned" in row else None


def _classic(row: Mapping[str, Any]) -> float | None:
    found = row["baseline"]
    return found["matched"] / found["same entries"] if found else None


def _worst(shares: Iterable[float | None]) -> str:
    """The smallest share in percent, where all could be read."""
    found = list(shares)
    known = [share for share in found if share is not None]
    if not known or len(known) < len(found):
        return "not read"
    # Only what is whole is called so.
    return "100" if min(known) == 1 else f"{min(99.9, 100 * min(known)):.1f}"


def _line(name: str, which: str, row: Mapping[str, Any]) -> str:
    aligned = strength = likeness = ""
    if "aligned" in row:
        aligned = f"{row['aligned']} / {row['same entries']}, {row['read']}"
        strength, likeness = str(row["strength"]), f"{row['likeness']:.3f}"
    cells = (
        name,
        which,
        str(row["added"]),
        f"{row['outputs']:.0e}",
        f"{row['plain']} / {row['total']}",
        {True: "yes", False: "no", None: "not judged"}[row["accepted"]],
        aligned,
        strength,
        likeness,
        str(row["baseline"].get("matched", "tied otherwise")),
        f"{row['seconds']}, {row['baseline seconds']}",
    )
    return f"| {' | '.join(cells)} |"
