"""Messages of protocol buffers, field by field, without the classes of any format.

https://protobuf.dev/programming-guides/encoding. Of a mapped file nothing is copied but what is
asked for, and a message that is said to be longer than what holds it is damaged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from passportize.suspects.refusals import Damaged, Unsupported
from passportize.suspects.window import Window, tensor_of

__all__ = ["Message", "fields", "looks_like"]

VARINT, FIXED64, RUN, FIXED32 = 0, 1, 2, 5
CHUNK = 2**20
Value = int | Window


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    if place < len(data) and (first := data[place]) < 128:
        return first, place + 1
    value = shift = 0
    while True:
        if place >= len(data) or shift > 63:
            raise Damaged(f"a number at byte {place} has no end")
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & (2**64 - 1), place
        shift += 7


def _varints(data: memoryview) -> NDArray[np.int64]:
    """Numbers that lie one after the other, all at once."""
    octets = np.frombuffer(data, dtype=np.uint8)
    ends = np.flatnonzero(octets < 128)
    if octets.size and (not ends.size or ends[-1] != octets.size - 1):
        raise Damaged("the last number of a run has no end")
    starts = np.concatenate([[0], ends[:-1] + 1]) if ends.size else ends
    lengths = ends - starts + 1
    if lengths.size and int(lengths.max()) > 10:
        raise Damaged("a number of a run is too long")
    values = np.zeros(ends.size, dtype=np.uint64)
    for place in range(int(lengths.max()) if lengths.size else 0):
        there = np.flatnonzero(lengths > place)
        part = (octets[starts[there] + place] & 127).astype(np.uint64)
        values[there] |= part << np.uint64(7 * place)
    return values.view(np.int64)


def _chunks(data: memoryview) -> Iterator[memoryview]:
    """Pieces of a run of numbers that end where a number ends."""
    place = 0
    while place < len(data):
        end = min(place + CHUNK, len(data))
        while end < len(data) and data[end - 1] > 127:
            end += 1
        yield data[place:end]
        place = end


def fields(window: Window) -> Iterator[tuple[int, int, Value]]:
    """Number, wire type and value of every field of a message.

    Raises:
        Damaged: The bytes are no message.
        Unsupported: It has more fields than any model.
    """
    data, place, end, budget = window.data, 0, len(window.data), window.budget
    while place < end:
        budget.step()
        key, place = _varint(data, place)
        number, kind = key >> 3, key & 7
        if not number:
            raise Damaged(f"a field at byte {place} has no number")
        if kind == VARINT:
            value, place = _varint(data, place)
            yield number, kind, value
            continue
        if kind == RUN:
            length, place = _varint(data, place)
        elif kind in (FIXED64, FIXED32):
            length = 8 if kind == FIXED64 else 4
        else:
            raise Damaged(f"a field at byte {place} is of no kind that exists")
        if place + length > end:
            raise CutOff(number, length, end - place)
        yield number, kind, Window(data[place : place + length], budget)
        place += length


class CutOff(Damaged):
    """A field has fewer bytes than it says."""

    def __init__(self, number: int, length: int, left: int) -> None:
        super().__init__(f"field {number} is said to have {length} bytes, {left} are left")
        self.number = number


def looks_like(window: Window, known: dict[int, int], needed: set[int]) -> bool:
    """Whether bytes are a message with these fields and no others.

    Args:
        window: The bytes.
        known: Wire type by number.
        needed: Numbers of which one must be there.
    """
    found = False
    try:
        for number, kind, _ in fields(window):
            if known.get(number) != kind:
                return False
            found = found or number in needed
    except CutOff as error:
        return found or error.number in needed
    except (Damaged, Unsupported):
        # What came before was right.
        return found
    return found


class Message:
    """The fields of one message by their numbers.

    Args:
        window: Its bytes.

    Raises:
        Damaged: As :func:`fields`.
    """

    def __init__(self, window: Window) -> None:
        self.window = window
        self._fields: dict[int, list[Value]] = defaultdict(list)
        for number, _, value in fields(window):
            self._fields[number].append(value)

    def __contains__(self, number: int) -> bool:
        return number in self._fields

    def runs(self, number: int) -> list[Window]:
        """All values of a field that are bytes, text or messages."""
        return [value for value in self._fields.get(number, []) if isinstance(value, Window)]

    def messages(self, number: int) -> Iterator[Message]:
        """All values of a field as messages."""
        return (Message(run) for run in self.runs(number))

    def message(self, number: int) -> Message:
        """The last value of a field as a message; an empty one where there is none."""
        runs = self.runs(number)
        return Message(runs[-1] if runs else Window(self.window.data[:0], self.window.budget))

    def text(self, number: int) -> str:
        """The last value of a field as text; empty where there is none."""
        runs = self.runs(number)
        return bytes(runs[-1].data[:4096]).decode("utf-8", "replace") if runs else ""

    def texts(self, number: int) -> list[str]:
        """All values of a field as text."""
        return [bytes(run.data[:4096]).decode("utf-8", "replace") for run in self.runs(number)]

    def numbers(self, number: int) -> list[int]:
        """All numbers of a field, packed or not, as signed ones of 64 bits."""
        found: list[int] = []
        for value in self._fields.get(number, []):
            if isinstance(value, int):
                found.append(value - 2**64 if value >= 2**63 else value)
            else:
                self.window.budget.step(len(value))
                found.extend(_varints(value.data).tolist())
        return found

    def many_numbers(self, number: int) -> Tensor:
        """The same as a tensor, int64 ``[n]``, for as many as a weight may have."""
        data = [run.data for run in self.runs(number)]
        single = [value for value in self._fields.get(number, []) if isinstance(value, int)]
        count = sum(int((np.frombuffer(d, dtype=np.uint8) < 128).sum()) for d in data)
        self.window.budget.charge(16 * (count + len(single)), f"field {number}")
        values = np.empty(count + len(single), dtype=np.int64)
        place = 0
        for chunk in (chunk for run in data for chunk in _chunks(run)):
            part = _varints(chunk)
            values[place : place + part.size] = part
            place += part.size
        values[place:] = np.array(single, dtype=np.uint64).view(np.int64)
        return torch.from_numpy(values)

    def number(self, field: int, default: int = 0) -> int:
        """The last number of a field."""
        found = self.numbers(field)
        return found[-1] if found else default

    def real(self, number: int, default: float = 0.0) -> float:
        """The last value of a field of type float."""
        runs = self.runs(number)
        if not runs:
            return default
        return float(runs[-1].unpack("<f", 0, f"field {number}")[0])

    def packed(self, number: int, dtype: torch.dtype) -> Tensor | None:
        """All values of a field of a type with a fixed size, as one tensor; None if none is there.

        Raises:
            Damaged: The bytes are no whole number of them.
        """
        runs = self.runs(number)
        data = (
            runs[0].data
            if len(runs) == 1
            else memoryview(bytearray(b"".join(r.data for r in runs)))
        )
        if not len(data):
            return None
        if len(data) % dtype.itemsize:
            raise Damaged(f"field {number} has {len(data)} bytes for numbers of {dtype.itemsize}")
        self.window.budget.charge(len(data), f"field {number}")
        return tensor_of(data, dtype)
