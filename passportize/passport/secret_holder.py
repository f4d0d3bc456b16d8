"""The manners of an object that holds a secret."""

from __future__ import annotations

from typing import Any, NoReturn, TypeVar

from passportize.errors import PassportError

__all__ = ["SecretHolder"]

Holder = TypeVar("Holder", bound="SecretHolder")


class SecretHolder:
    """Immutable, its own copy, and never pickled: a secret must not slip into a checkpoint."""

    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise PassportError(
            f"a {type(self).__name__} is immutable: {name} cannot be set; make another one"
        )

    def __delattr__(self, name: str) -> NoReturn:
        raise PassportError(f"a {type(self).__name__} is immutable: {name} cannot be deleted")

    def __copy__(self: Holder) -> Holder:
        return self

    def __deepcopy__(self: Holder, memo: dict[int, Any]) -> Holder:
        return self

    def __reduce__(self) -> NoReturn:
        raise PassportError(
            f"a {type(self).__name__} is never pickled, because the secret would end up in the "
            "file; keep it out of what you save, and store a passport with passport.save(path)"
        )
