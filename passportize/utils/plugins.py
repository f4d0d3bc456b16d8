"""Things that others may add by name: by a decorator, or by an entry point of their package."""

from __future__ import annotations

import difflib
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from passportize.errors import InvalidArgument

__all__ = ["Plugins"]

Item = TypeVar("Item")


class Plugins(Generic[Item]):
    """A table of what was registered, by name.

    Args:
        word: What an item is called in messages, ``"attack"`` say.
        group: Entry points of this group are imported when a name is asked for, once; importing
            them is expected to register something.
    """

    def __init__(self, word: str, group: str) -> None:
        self.word, self.group = word, group
        self._items: dict[str, Item] = {}
        self._loaded = False

    def add(self, name: str, item: Item) -> None:
        """Register an item.

        Raises:
            InvalidArgument: The name is taken, or is none that a command line can take.
        """
        if not isinstance(name, str) or not name.replace("-", "").isalnum() or name != name.lower():
            raise InvalidArgument(
                f"{self.word} {name!r}: names are lower-case letters and digits with hyphens"
            )
        if name in self._items:
            raise InvalidArgument(
                f"there is a {self.word} called {name!r} already; choose another name, or take it "
                "out first"
            )
        self._items[name] = item

    def remove(self, name: str) -> None:
        """Take an item out; one that is not there is no error."""
        self._items.pop(name, None)

    def find(self, name: str) -> Item:
        """The item of a name.

        Raises:
            InvalidArgument: There is none; the message names the nearest.
        """
        self._load()
        if name not in self._items:
            near = difflib.get_close_matches(str(name), self._items, 3)
            guess = f"did you mean {' or '.join(near)}? " if near else ""
            raise InvalidArgument(
                f"there is no {self.word} called {name!r}; {guess}known are "
                f"{', '.join(sorted(self._items))}"
            )
        return self._items[name]

    def names(self) -> list[str]:
        """All names, sorted."""
        self._load()
        return sorted(self._items)

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        for point in entry_points(group=self.group):
            point.load()
