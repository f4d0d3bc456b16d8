"""Which adapter answers for which norm class, by exact type."""

from __future__ import annotations

import importlib
import sys
from typing import cast

from torch import nn

from passportize.errors import UnsupportedNorm
from passportize.layers.derived import is_parametrized_class, parametrized_class, plain_class
from passportize.layers.host_view import make_view_class
from passportize.layers.layer import PassportLayer
from passportize.utils.names import describe_type

__all__ = [
    "FRAMEWORKS",
    "NOT_ADAPTED",
    "adapter_for",
    "has_adapter",
    "register_adapter",
    "registered_norms",
]

_ADAPTERS: dict[type[nn.Module], type[PassportLayer]] = {}

NOT_ADAPTED: dict[type[nn.Module], str] = {}
"""Norms that stay as they are, and why."""

FRAMEWORKS: dict[str, tuple[str, ...]] = {}
"""Modules of other libraries, and the modules with adapters for the norms that they define.

:mod:`passportize.adapters` fills both tables, so that nothing here knows a single norm.
"""


def register_adapter(norm_class: type[nn.Module], passport_class: type[PassportLayer]) -> None:
    """Say which two-branch class stands in for a norm class while it is passportized.

    The match is exact: a subclass of ``norm_class`` needs an adapter of its own, because nobody
    knows what it adds to its parent.

    Args:
        norm_class: The host's class, for example ``nn.BatchNorm2d``.
        passport_class: A subclass of :class:`passportize.PassportLayer` and ``norm_class``,
            in this order, defined at module level.

    Raises:
        UnsupportedNorm: One of the classes does not fit, or the norm class has an adapter already.

    """
    if not (isinstance(norm_class, type) and issubclass(norm_class, nn.Module)):
        raise UnsupportedNorm(f"register_adapter: {norm_class!r} is not a subclass of nn.Module")
    if not (
        isinstance(passport_class, type)
        and issubclass(passport_class, PassportLayer)
        and issubclass(passport_class, norm_class)
    ):
        raise UnsupportedNorm(
            f"register_adapter: the adapter of {describe_type(norm_class)} must be a class that "
            f"derives from (PassportLayer, {norm_class.__name__}), not {passport_class!r}"
        )
    known = _ADAPTERS.get(norm_class)
    if known is not None and known is not passport_class:
        raise UnsupportedNorm(
            f"register_adapter: {describe_type(norm_class)} already has the adapter "
            f"{known.__qualname__}"
        )
    passport_class.host_class = norm_class
    passport_class.view_class = make_view_class(passport_class)
    _ADAPTERS[norm_class] = passport_class


def adapter_for(module: nn.Module) -> type[PassportLayer] | None:
    """The adapter of a module's exact class, whether or not it is parametrized, or None."""
    _register_loaded_frameworks()
    adapter = _ADAPTERS.get(type(module))
    if adapter is None and is_parametrized_class(type(module)):
        plain = _ADAPTERS.get(plain_class(module))
        if plain is not None:
            return cast("type[PassportLayer]", parametrized_class(plain, type(module)))
    return adapter


def has_adapter(norm_class: type[nn.Module]) -> bool:
    """Whether a class is in the table; looks at nothing else."""
    return norm_class in _ADAPTERS


def registered_norms() -> dict[type[nn.Module], type[PassportLayer]]:
    """A copy of the table, in order of registration."""
    _register_loaded_frameworks()
    return dict(_ADAPTERS)


def _register_loaded_frameworks() -> None:
    """Register the adapters of frameworks that the program has imported already.

    A model can only hold timm norms if timm is loaded, so nothing is imported that is not there.
    An adapter that the user has registered before stays.
    """
    for framework in [name for name in FRAMEWORKS if name in sys.modules]:
        for name in FRAMEWORKS[framework]:
            family = importlib.import_module(name)
            for norm, adapter in family.ADAPTERS.items():
                if not has_adapter(norm):
                    register_adapter(norm, adapter)
            NOT_ADAPTED.update(getattr(family, "NOT_ADAPTED", {}))
        FRAMEWORKS.pop(framework, None)
