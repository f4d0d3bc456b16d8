"""Methods that were set on one norm object: ``norm.forward = MethodType(function, norm)``.

Libraries patch live models so (Liger-Kernel, say). A forward on the object comes before that of the
class, so it has to step aside for the two-branch layer; what was there is kept and runs in its
place, on the norm for the public branch and on a view of it for the private one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any

from torch import nn

__all__ = ["OwnMethods", "foreign_forward", "reaches_class", "wrapped_later"]


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
        """Set the forward on the norm again, the same object where it is the same norm.

        Must be called while the norm is a two-branch layer.
        """
        if self.forward is None:
            left: Any = vars(norm).get("forward")
            if _is_method(left, norm) and left.__func__ is type(norm).forward:
                # By wrappers that were put on after surgery and taken off again.
                del vars(norm)["forward"]
        else:
            kept = self._bound.get("forward")
            same = kept is not None and kept.__self__ is norm
            vars(norm)["forward"] = kept if same else MethodType(self.forward, norm)


def foreign_forward(module: nn.Module) -> bool:
    """Whether a forward is set on a module that is no method of it, so nobody can run it apart."""
    forward = vars(module).get("forward")
    return forward is not None and not _is_method(forward, module)


def reaches_class(module: nn.Module) -> bool:
    """Whether calling a module runs the forward of its class, be it through wrappers.

    Wrappers are believed if they say what they wrap, as those of :func:`functools.wraps` do.
    """
    forward = vars(module).get("forward")
    if forward is None:
        return True
    inner: Any = inspect.unwrap(forward)
    if inner is type(module).forward:
        return True
    return _is_method(inner, module) and inner.__func__ is type(module).forward


def wrapped_later(module: nn.Module) -> bool:
    """Whether something that was put around the forward of a two-branch layer is still there."""
    forward = vars(module).get("forward")
    if forward is None or not reaches_class(module):
        return False
    return not (_is_method(forward, module) and forward.__func__ is type(module).forward)


def _is_method(forward: Any, module: nn.Module) -> bool:
    return type(forward) is MethodType and forward.__self__ is module
