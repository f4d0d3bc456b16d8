"""Classes that are made when a model needs them, and their place in files and copies."""

from __future__ import annotations

import functools
from collections.abc import Hashable
from typing import Any, ClassVar, TypeVar, cast

from torch import nn
from torch.nn.utils import parametrize

from passportize.layers.host_view import make_view_class

__all__ = [
    "MadeOnDemand",
    "class_before",
    "is_parametrized_class",
    "make_class",
    "make_class_anew",
    "plain_class",
]

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


def make_class_anew(
    family: type[nn.Module], host_class: type[nn.Module], names: tuple[tuple[str, Any], ...] = ()
) -> Any:
    """The class ``(family, host_class)``, another one at every call; else as :func:`make_class`."""
    properties = {}
    if is_parametrized_class(host_class):
        # Where torch looks for them when a parametrization is taken off again.
        properties = {k: v for k, v in vars(host_class).items() if isinstance(v, property)}
    made: Any = type(
        f"Passport{host_class.__name__}",
        (family, host_class),
        {
            "__module__": __name__,
            "__doc__": f":class:`{host_class.__name__}` as it is while it is passportized.",
            "host_class": host_class,
            "recipe": (family, host_class, names),
            **properties,
            **dict(names),
        },
    )
    if getattr(made, "scale_name", ""):
        made.view_class = make_view_class(made)
    return made


_make = functools.cache(make_class_anew)


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
    # torch makes a class for each parametrized module, so that none would be found again.
    # mypy takes the __hash__ of a class for that of its instances.
    make: Any = make_class_anew if is_parametrized_class(host_class) else _make
    made: type[Family] = make(cast(Hashable, family), cast(Hashable, host_class), names)
    return made


# --- classes that torch makes for modules of which a parametrization computes a tensor -----------


def is_parametrized_class(kind: type) -> bool:
    """Whether torch made this class for one parametrized module."""
    return kind.__module__ == parametrize.__name__ and kind.__name__.startswith("Parametrized")


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module, without what a parametrization made of it."""
    kind = type(module)
    return kind.__bases__[0] if is_parametrized_class(kind) else kind


def class_before(kind: type[Any]) -> type[nn.Module]:
    """What the class of a module was before surgery; later parametrizations stay.

    Args:
        kind: A class with ``host_class``, or what torch made of one.
    """
    host: type[nn.Module] = kind.host_class
    if not is_parametrized_class(kind):
        return host
    kept = {
        name: value
        for name, value in vars(kind).items()
        if isinstance(value, property) or name in ("__getstate__", "__deepcopy__", "__module__")
    }
    return type(f"Parametrized{host.__name__}", (host,), kept)


def _blank(
    family: type[MadeOnDemand],
    host_class: type[nn.Module],
    names: tuple[tuple[str, str], ...],
) -> MadeOnDemand:
    made = make_class(family, host_class, names)
    return made.__new__(made)
