"""A norm as its own code sees it, with other factors: what the private branch runs."""

from __future__ import annotations

from types import MethodType
from typing import TYPE_CHECKING, Any

from torch import nn

from passportize.layers.private_branch import STATISTICS

if TYPE_CHECKING:
    from passportize.layers.layer import PassportLayer

__all__ = ["HostView", "make_view_class", "view_of"]


class _Replaced:
    """An attribute that a view has instead of the norm's, whatever it is there."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, view: Any, kind: type | None = None) -> Any:
        values = view.__dict__["_replaced"]
        if self.name not in values:
            raise AttributeError(self.name)
        view.__dict__["_read"].append(self.name)
        return values[self.name]

    def __set__(self, view: Any, value: Any) -> None:
        view.__dict__["_replaced"][self.name] = value


class HostView(nn.Module):
    """A norm in which some attributes are replaced; everything else is the norm's.

    A view is of a class derived from the norm's, so every method and property that the forward uses
    finds the replaced attributes, whatever its release does inside (helpers, ``super()``, casts,
    fast kernels, activation). Nothing is set on the norm, so threads, hooks and checkpointing never
    see the change: what the forward sets is set on the view and goes with it.
    """

    def replaced(self, name: str) -> Any:
        """What an attribute is now: as given, or as the forward has set it."""
        return self.__dict__["_replaced"].get(name)

    def has_read(self, name: str) -> bool:
        """Whether the forward has asked for a replaced attribute."""
        return name in self.__dict__["_read"]


def make_view_class(adapter: type[PassportLayer]) -> type[HostView]:
    """The class of the views of one adapter's norms.

    Args:
        adapter: With ``host_class``, ``scale_name`` and ``shift_name``.
    """
    host = adapter.host_class
    names = {name for name in (adapter.scale_name, adapter.shift_name, *STATISTICS) if name}
    return type(
        f"{host.__name__}View",
        (host, HostView),
        {"__module__": __name__, **{name: _Replaced(name) for name in names}},
    )


def view_of(norm: PassportLayer, replaced: dict[str, Any]) -> HostView:
    """A view of a live norm.

    Args:
        norm: The norm.
        replaced: Values by name, of its scale, its shift and its statistics; where none is given,
            the view has the norm's own.
    """
    view = object.__new__(type(norm).view_class)
    attributes = view.__dict__
    attributes.update(norm.__dict__)
    attributes.pop("forward", None)
    values = dict(replaced)
    for name in (norm.scale_name, norm.shift_name, *STATISTICS):
        if name and name not in values and hasattr(norm, name):
            values[name] = getattr(norm, name)
    attributes["_replaced"] = values
    attributes["_read"] = []
    # For those that ask for tensors by name: named_parameters(), state_dict().
    attributes["_parameters"] = {k: values.get(k, v) for k, v in norm._parameters.items()}
    # Buffers are set anew by some, and nn.Module would do so past the view.
    attributes["_buffers"] = {k: v for k, v in norm._buffers.items() if k not in values}
    attributes["_modules"] = {k: v for k, v in norm._modules.items() if k != "passport"}
    computed: Any = norm._modules.get("parametrizations") or ()
    for name in computed:
        if name not in values:
            attributes[name] = getattr(norm, name)
    for name, function in norm.passport.own_methods.functions.items():
        attributes[name] = MethodType(function, view)
    return view
