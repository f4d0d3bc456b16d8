"""A licensee: somebody whose copy of a model is to be told from everybody else's."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, NoReturn

from passportize.errors import InvalidArgument, PassportError

if TYPE_CHECKING:
    from passportize.passport.passport import Passport

__all__ = ["Licensee", "licensee_name"]

_LONGEST = 200


class Licensee:
    """A name under an owner's passport; made by :meth:`passportize.Passport.licensee`.

    It is the owner's to use: whoever has it has the passport, and can mark a copy in this name.

    Args:
        passport: The owner's passport.
        name: Who gets the copy.
    """

    __slots__ = ("_name", "_passport")

    def __init__(self, passport: Passport, name: str) -> None:
        self._name = licensee_name(name)
        self._passport = passport

    @property
    def name(self) -> str:
        """Who gets the copy."""
        return self._name

    @property
    def passport(self) -> Passport:
        """The owner's passport."""
        return self._passport

    def __repr__(self) -> str:
        return f"Licensee({self._name!r})"

    def __reduce__(self) -> NoReturn:
        raise PassportError("a licensee is never pickled, because it holds the owner's passport")


def licensee_name(name: str) -> str:
    """A name in its canonical form (NFC, without blanks around it).

    Raises:
        InvalidArgument: It is empty, too long, or no text.
    """
    if not isinstance(name, str):
        raise InvalidArgument(f"a licensee's name must be text, not {type(name).__name__}")
    plain = unicodedata.normalize("NFC", name).strip()
    if not plain or not plain.isprintable() or len(plain) > _LONGEST:
        raise InvalidArgument(
            f"a licensee's name has 1 to {_LONGEST} printable characters; got {len(plain)}"
        )
    return plain
