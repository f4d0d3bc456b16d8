"""Choosing sites by name: glob patterns, lists of them, or a predicate."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from passportize.config import PassportConfig
from passportize.errors import InvalidArgument, UnknownSite
from passportize.signature.site import Site

__all__ = ["Where", "matches", "select", "site_configs"]

Where = str | Iterable[str] | Callable[[str], bool]


def matches(name: str, pattern: str) -> bool:
    """Whether a dotted name fits a glob pattern; a module's name takes what is inside along.

    >>> matches("layer4.0.bn1", "layer4*"), matches("layer4.0.bn1", "layer4")
    (True, True)
    """
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def select(names: Sequence[Sequence[str]], where: Where | None, argument: str) -> list[bool]:
    """Which sites are meant.

    Args:
        names: For each site its name and aliases.
        where: None for all, a glob pattern, several of them, or a predicate on dotted names.
        argument: Name of the argument, for errors.

    Raises:
        UnknownSite: A pattern matches no site.
        InvalidArgument: ``where`` is of another type.
    """
    if where is None:
        return [True] * len(names)
    if callable(where):
        return [any(bool(where(name)) for name in group) for group in names]
    patterns = [where] if isinstance(where, str) else where
    try:
        patterns = list(patterns)
    except TypeError:
        patterns = [where]  # type: ignore[list-item]
    chosen = [False] * len(names)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise InvalidArgument(
                f"{argument}={where!r} must be a glob pattern, a list of them, or a function of "
                "a dotted name"
            )
        hits = [any(matches(name, pattern) for name in group) for group in names]
        if not any(hits):
            every = [name for group in names for name in group]
            near = difflib.get_close_matches(pattern.rstrip("*."), every, n=3, cutoff=0.4)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise UnknownSite(
                f"{argument}: {pattern!r} matches none of the {len(names)} normalization layers"
                f"{hint} Print passportize.plan(model) to see their names"
            )
        chosen = [old or new for old, new in zip(chosen, hits, strict=True)]
    return chosen


def site_configs(
    sites: Sequence[Site],
    config: PassportConfig,
    overrides: Mapping[str, PassportConfig | Mapping[str, Any]] | None,
) -> list[PassportConfig]:
    """The formulation of every site: the model-wide one, or the last override that matches.

    Args:
        sites: The sites in order.
        config: The model-wide config.
        overrides: Glob pattern on dotted names to a config, or to the settings that differ.

    Raises:
        UnknownSite: A pattern matches no site.
        InvalidArgument: An override makes no sense.
    """
    configs = [config] * len(sites)
    for pattern, override in (overrides or {}).items():
        if isinstance(override, PassportConfig):
            changed = override
        elif isinstance(override, Mapping):
            changed = PassportConfig.from_dict({**config.to_dict(), **override})
        else:
            raise InvalidArgument(
                f"overrides[{pattern!r}] must be a PassportConfig or a dict of settings, not "
                f"{type(override).__name__}"
            )
        if changed.has_private_pass and not config.has_private_pass:
            raise InvalidArgument(
                f"overrides[{pattern!r}] asks for {changed.formulation!r}, but the model-wide "
                "preset is 'signature', which runs no private branch"
            )
        counted = ("bits", "shortest_row", "licence_bits")
        if any(getattr(changed, name) != getattr(config, name) for name in counted):
            raise InvalidArgument(
                f"overrides[{pattern!r}] sets one of {', '.join(counted)}, which count for the "
                "whole model; set them in config=, and choose layers with where="
            )
        hits = select([(site.name, *site.aliases) for site in sites], pattern, "overrides")
        configs = [changed if hit else old for hit, old in zip(hits, configs, strict=True)]
    return configs
