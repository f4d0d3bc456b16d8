"""Methods that were set on one norm object: ``norm.forward = MethodType(function, norm)``.

Libraries patch live models so (Liger-Kernel, say). A forward on the object comes before that of the
class, so it has to step aside for the two-branch layer; what was there is kept and runs in its
place, on the norm for the public branch and on a view of it for the private one.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

from torch import nn

__all__ = ["OwnMethods", "foreign_forward"]


class OwnMethods:
    """The methods that are bound to one norm and set on it.

    Args:
        norm: A plain norm.

    Attributes:
        functions: What each of them calls, by name.
    """

    def __init__(self, norm: nn.Module) -> None:
        bound = {
            name: value
            for name, value in vars(norm).items()
            if type(value) is MethodType and value.__self__ is norm
        }
        self.functions: dict[str, Callable[..., Any]] = {
            name: value.__func__ for name, value in bound.items()
        }
        self._bound = bound

    def __getstate__(self) -> dict[str, Any]:
        """Copies and files bind them anew: a bound method is pickled by its name."""
        return {"functions": self.functions, "_bound": {}}

    @property
    def forward(self) -> Callable[..., Any] | None:
        """The function of a forward that was set on the norm, None where the class's counts."""
        return self.functions.get("forward")

    def put_back(self, norm: nn.Module) -> None:
        """Set the forward on the norm again, the same object where it is the same norm."""
        if self.forward is not None:
            kept = self._bound.get("forward")
            same = kept is not None and kept.__self__ is norm
            vars(norm)["forward"] = kept if same else MethodType(self.forward, norm)


def foreign_forward(module: nn.Module) -> bool:
    """Whether a forward is set on a module that is no method of it, so nobody can run it apart."""
    forward = vars(module).get("forward")
    return forward is not None and not (type(forward) is MethodType and forward.__self__ is module)
