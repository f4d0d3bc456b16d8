"""The results of the mutation test as a page to read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HEAD = """\
# Mutation test

Made by `make mutants` ([tools/mutation.py](../tools/mutation.py)). A mutant is one small change
of a file; it is killed if one of the tests named for the file fails. `state` is the commit, and the
first digits of git's hash of the file, so that a later change shows. A mutant that makes no
difference has its reason here.

| file | state | mutants | killed | of them by time | no difference | left | seconds |
|---|---|--:|--:|--:|--:|--:|--:|
"""


def page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The page, in Markdown.

    Args:
        results: What was found for each file.
    """
    lines = [HEAD.rstrip("\n")]
    for name, result in results.items():
        survivors = result["survivors"]
        explained = sum(bool(one["why"]) for one in survivors)
        lines.append(
            f"| `{name}` | {result['commit']}, {result['blob']} | {result['mutants']} "
            f"| {result['mutants'] - len(survivors)} | {result['timed_out']} | {explained} "
            f"| {len(survivors) - explained} | {result['seconds']} |"
        )
    for name, result in results.items():
        if result["survivors"]:
            lines += ["", f"## {name}", ""]
        grouped: dict[str, list[Mapping[str, Any]]] = {}
        for one in result["survivors"]:
            grouped.setdefault(one["why"] or "LEFT: no test notices this", []).append(one)
        for why, ones in grouped.items():
            lines += [why[0].upper() + why[1:] + ":", "", "```diff"]
            for one in ones:
                lines += [f"@@ line {one['line']}", f"- {one['before']}", f"+ {one['after']}"]
            lines += ["```", ""]
    return "\n".join(lines).rstrip("\n") + "\n"
