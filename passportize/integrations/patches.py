"""Replacing names for the length of a ``with`` block."""

from __future__ import annotations

from types import TracebackType
from typing import Any

__all__ = ["Patches"]


class Patches:
    """Replaced attributes, put back in reverse order at the end, whatever happened.

    >>> import types
    >>> module = types.SimpleNamespace(name="old")
    >>> with Patches() as patches:
    ...     patches.replace(module, "name", "new")
    ...     module.name
    'new'
    >>> module.name
    'old'
    """

    def __init__(self) -> None:
        self._undo: list[tuple[Any, str, bool, Any]] = []

    def replace(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute of a module or class; an inherited one is set on the class itself."""
        own = name in vars(owner)
        self._undo.append((owner, name, own, vars(owner).get(name)))
        setattr(owner, name, value)

    def undo(self) -> None:
        """Put everything back."""
        while self._undo:
            owner, name, own, value = self._undo.pop()
            if own:
                setattr(owner, name, value)
            else:
                delattr(owner, name)

    def __enter__(self) -> Patches:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.undo()
