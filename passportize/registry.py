"""Which adapter answers for which norm class, by exact type."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from passportize.errors import UnsupportedNorm

if TYPE_CHECKING:
    from passportize.layer import PassportLayer

__all__ = ["adapter_for", "describe_type", "has_adapter", "register_adapter", "registered_norms"]

_ADAPTERS: dict[type[nn.Module], type[PassportLayer]] = {}


def register_adapter(norm_class: type[nn.Module], passport_class: type[PassportLayer]) -> None:
    """Say which two-branch class stands in for a norm class while it is passportized.

    The match is exact: a subclass of ``norm_class`` needs an adapter of its own, because nobody
    knows what it adds to its parent.

    Args:
        norm_class: The host's class, for example ``nn.BatchNorm2d``.
        passport_class: A subclass of :class:`passportize.layer.PassportLayer` and ``norm_class``,
            in this order, defined at module level.

    Raises:
        UnsupportedNorm: One of the classes does not fit, or the norm class has an adapter already.

    """
    from passportize.layer import PassportLayer

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
    _ADAPTERS[norm_class] = passport_class


def adapter_for(module: nn.Module) -> type[PassportLayer] | None:
    """The adapter of a module's exact class, or None."""
    import passportize.adapters

    passportize.adapters.register_loaded_frameworks()
    return _ADAPTERS.get(type(module))


def has_adapter(norm_class: type[nn.Module]) -> bool:
    """Whether a class is in the table; looks at nothing else."""
    return norm_class in _ADAPTERS


def registered_norms() -> dict[type[nn.Module], type[PassportLayer]]:
    """A copy of the table, in order of registration."""
    import passportize.adapters

    passportize.adapters.register_loaded_frameworks()
    return dict(_ADAPTERS)


def describe_type(norm_class: type) -> str:
    """Qualified name as people write it: ``torch.nn.BatchNorm2d``, ``timm.layers.norm.LayerNorm``.

    >>> describe_type(nn.BatchNorm2d)
    'torch.nn.BatchNorm2d'
    """
    module = norm_class.__module__
    if module.startswith("torch.nn.modules."):
        module = "torch.nn"
    return f"{module}.{norm_class.__qualname__}"
