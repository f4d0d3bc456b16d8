"""Schemes by name. Others add theirs by :func:`register_scheme`, or as an entry point."""

from __future__ import annotations

from typing import TypeVar

from passportize.errors import InvalidArgument
from passportize.schemes.scheme import Scheme
from passportize.utils.plugins import Plugins

__all__ = ["SCHEMES", "find_scheme", "register_scheme", "scheme_names"]

SCHEMES: Plugins[type[Scheme]] = Plugins("scheme", "passportize.schemes")

Kind = TypeVar("Kind", bound=type[Scheme])


def register_scheme(kind: Kind) -> Kind:
    """Add a scheme under its ``name``: a class decorator.

    Raises:
        InvalidArgument: It is no :class:`~passportize.schemes.scheme.Scheme`, or its name is taken.
    """
    if not (isinstance(kind, type) and issubclass(kind, Scheme)):
        raise InvalidArgument(f"register_scheme: {kind!r} is not a subclass of Scheme")
    name = getattr(kind, "name", None)
    if not isinstance(name, str):
        raise InvalidArgument(f"register_scheme: {kind.__name__} has no name; set name = '...'")
    SCHEMES.add(name, kind)
    return kind


def find_scheme(name: str) -> Scheme:
    """A scheme with its default settings.

    Raises:
        InvalidArgument: There is none of this name.
    """
    return SCHEMES.find(name)()


def scheme_names() -> list[str]:
    """Names of all schemes, sorted."""
    return SCHEMES.names()
