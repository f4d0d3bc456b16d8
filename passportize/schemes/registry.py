"""Schemes by name. Others add theirs by :func:`register_scheme`, or as an entry point."""

from __future__ import annotations

from typing import Any, TypeVar

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


def find_scheme(name: str, **settings: Any) -> Scheme:
    """A scheme by its name, with its default settings or others.

    Raises:
        InvalidArgument: There is none of this name, or it has no such setting.
    """
    kind = SCHEMES.find(name)
    try:
        return kind(**settings)
    except TypeError as error:
        raise InvalidArgument(f"scheme {name}: {error}") from None


def scheme_names() -> list[str]:
    """Names of all schemes, sorted."""
    return SCHEMES.names()
