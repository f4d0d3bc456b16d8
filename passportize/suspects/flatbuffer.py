"""Tables of FlatBuffers by the numbers of their fields, without generated classes.

https://flatbuffers.dev/internals. The library for Python follows offsets without a look at the end
of the buffer; here each one is held against it.
"""

from __future__ import annotations

from typing import Any

from passportize.suspects.window import Window

__all__ = ["Table"]


class Table:
    """A table.

    Args:
        window: The whole buffer.
        place: Where the table begins.

    Raises:
        Damaged: It lies beyond the buffer.
    """

    def __init__(self, window: Window, place: int) -> None:
        window.budget.step()
        self._window = window
        self._place = place
        self._fields = place - window.unpack("<i", place, "a table")[0]
        (self._length,) = window.unpack("<H", self._fields, "the fields of a table")

    @classmethod
    def root(cls, window: Window) -> Table:
        """The table that a buffer begins with."""
        return cls(window, window.unpack("<I", 0, "the root")[0])

    def _at(self, number: int) -> int | None:
        """Where a field lies, None if it has its default."""
        slot = 4 + 2 * number
        if slot + 2 > self._length:
            return None
        (offset,) = self._window.unpack("<H", self._fields + slot, f"field {number}")
        return self._place + offset if offset else None

    def number(self, number: int, layout: str, default: Any = 0) -> Any:
        """A field that is a number, in the notation of :mod:`struct`."""
        place = self._at(number)
        if place is None:
            return default
        return self._window.unpack("<" + layout, place, f"field {number}")[0]

    def _target(self, number: int) -> int | None:
        place = self._at(number)
        if place is None:
            return None
        return place + int(self._window.unpack("<I", place, f"field {number}")[0])

    def table(self, number: int) -> Table | None:
        """A field that is a table."""
        place = self._target(number)
        return None if place is None else Table(self._window, place)

    def vector(self, number: int, size: int) -> Window:
        """The bytes of a field that is a vector of entries of ``size`` bytes."""
        place = self._target(number)
        if place is None:
            return Window(self._window.data[:0], self._window.budget)
        (count,) = self._window.unpack("<I", place, f"field {number}")
        return self._window.part(place + 4, count * size, f"field {number}")

    def numbers(self, number: int, layout: str, size: int) -> tuple[Any, ...]:
        """A field that is a vector of numbers."""
        run = self.vector(number, size)
        count = len(run) // size
        self._window.budget.step(count)
        return run.unpack(f"<{count}{layout}", 0, f"field {number}")

    def tables(self, number: int) -> list[Table]:
        """A field that is a vector of tables."""
        place = self._target(number)
        if place is None:
            return []
        offsets = self.numbers(number, "I", 4)
        return [
            Table(self._window, place + 4 + 4 * index + offset)
            for index, offset in enumerate(offsets)
        ]

    def text(self, number: int) -> str:
        """A field that is text."""
        return bytes(self.vector(number, 1).data[:4096]).decode("utf-8", "replace")
