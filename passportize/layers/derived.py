"""Classes that are made when a model needs them, and their place in files and copies."""

from __future__ import annotations

import functools
from collections.abc import Hashable
from typing import Any, ClassVar, TypeVar, cast

from torch import nn

__all__ = ["MadeOnDemand", "make_class"]

Family = TypeVar("Family", bound="MadeOnDemand")


class MadeOnDemand(nn.Module):
    """A base of classes that no module defines: pickle rebuilds them from what they were made of.

    Attributes:
        host_class: The class that the module had.
        recipe: Arguments of :func:`make_class`.
    """

    host_class: ClassVar[type[nn.Module]]
    recipe: ClassVar[tuple[Any, ...]] = ()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """By recipe, since the class cannot be found by name."""
        reduced = super().__reduce_ex__(protocol)
        return (_blank, type(self).recipe, *reduced[2:])


@functools.cache
def _make(family: Any, host_class: Any, names: tuple[tuple[str, str], ...]) -> Any:
    return type(
        f"Passport{host_class.__name__}",
        (family, host_class),
        {
            "__module__": __name__,
            "__doc__": f":class:`{host_class.__name__}` as it is while it is passportized.",
            "host_class": host_class,
            "recipe": (family, host_class, names),
            **dict(names),
        },
    )


def make_class(
    family: type[Family],
    host_class: type[nn.Module],
    names: tuple[tuple[str, str], ...] = (),
) -> type[Family]:
    """The class ``(family, host_class)``; the same one for the same arguments.

    Args:
        family: What to put in front of the host's class.
        host_class: The class of the live layer.
        names: Class attributes to set, such as ``("scale_name", "gamma")``.
    """
    # mypy takes the __hash__ of a class for that of its instances.
    made: type[Family] = _make(cast(Hashable, family), cast(Hashable, host_class), names)
    return made


def _blank(
    family: type[MadeOnDemand],
    host_class: type[nn.Module],
    names: tuple[tuple[str, str], ...],
) -> MadeOnDemand:
    made = make_class(family, host_class, names)
    return made.__new__(made)
