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
    "parametrized_class",
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


@functools.cache
def _make(
    family: type[Any], host_class: type[nn.Module], names: tuple[tuple[str, Any], ...]
) -> Any:
    made: Any = type(
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
    if getattr(made, "scale_name", ""):
        made.view_class = make_view_class(made)
    return made


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
    if is_parametrized_class(host_class):
        plain = make_class(family, host_class.__bases__[0], names)
        return cast("type[Family]", parametrized_class(plain, host_class))
    # mypy takes the __hash__ of a class for that of its instances.
    made: type[Family] = _make(cast(Hashable, family), cast(Hashable, host_class), names)
    return made


# --- classes that torch makes for modules of which a parametrization computes a tensor -----------


def is_parametrized_class(kind: type) -> bool:
    """Whether torch made this class for one parametrized module."""
    return kind.__module__ == parametrize.__name__ and kind.__name__.startswith("Parametrized")


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module, without what a parametrization made of it."""
    kind = type(module)
    return kind.__bases__[0] if is_parametrized_class(kind) else kind


def parametrized_class(kind: type[nn.Module], before: type[nn.Module]) -> type[nn.Module]:
    """A class of ours for a parametrized module, as torch makes one if we come first.

    So parametrizations can be put on and taken off while the module is passportized; with the last
    one torch gives it the class ``kind``.

    Args:
        kind: The class that the module would get without parametrization.
        before: The class that torch made for it.
    """
    name = f"Parametrized{kind.__name__}"
    return type(name, (kind,), {**_made_by_torch(before), "class_before_surgery": before})


def class_before(kind: type[Any]) -> type[nn.Module]:
    """What the class of a module was before surgery; parametrizations are those that it has now.

    Args:
        kind: A class with ``host_class``, or what torch or :func:`parametrized_class` made of one.
    """
    host: type[nn.Module] = kind.host_class
    if not is_parametrized_class(kind):
        return host
    now = _made_by_torch(kind)
    before: type[nn.Module] | None = vars(kind).get("class_before_surgery")
    if before is None:
        return type(f"Parametrized{host.__name__}", (host,), now)
    # Torch made it for this module, and would have changed it in the same way.
    for name in _made_by_torch(before).keys() - now.keys():
        delattr(before, name)
    for name in now.keys() - _made_by_torch(before).keys():
        setattr(before, name, now[name])
    return before


def _made_by_torch(kind: type) -> dict[str, Any]:
    """What torch writes into the class of a parametrized module: a property for each tensor."""
    names = ("__getstate__", "__deepcopy__", "__module__")
    return {k: v for k, v in vars(kind).items() if isinstance(v, property) or k in names}


def _blank(
    family: type[MadeOnDemand],
    host_class: type[nn.Module],
    names: tuple[tuple[str, str], ...],
) -> MadeOnDemand:
    made = make_class(family, host_class, names)
    return made.__new__(made)
