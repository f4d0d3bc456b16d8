"""Pickles as data: the same values as Python makes of them, and never a call."""

from __future__ import annotations

import collections
import contextlib
import os
import pickle
import pickletools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passportize.suspects.pickle_machine import Made, Name, run_pickle
from passportize.suspects.refusals import Damaged, Unsupported
from passportize.suspects.window import Budget, WindowStream


def run(data: bytes, builders: dict[str, Any] | None = None) -> Any:
    return run_pickle(WindowStream(memoryview(data)), Budget(len(data)), builders or {})


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.floats(allow_nan=False)
)
VALUES = st.recursive(
    SCALARS,
    lambda inside: (
        st.lists(inside)
        | st.lists(inside).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inside)
    ),
    max_leaves=30,
)


@settings(max_examples=60, deadline=None)
@given(VALUES, st.integers(0, 5))
def test_plain_values_are_those_of_pickle(value: Any, protocol: int) -> None:
    data = pickle.dumps(value, protocol=protocol)
    # Old protocols have no bytes and make them of text.
    builders = {"_codecs.encode": lambda text, how: text.encode(how), "__builtin__.bytes": bytes}
    assert run(data, builders) == value


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_damaged(data: bytes) -> None:
    with contextlib.suppress(Damaged, Unsupported):
        run(data)


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_is_called(protocol: int, tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    class Escape:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(mark),)

    data = pickle.dumps({"w": Escape()}, protocol=protocol)
    made = run(data)["w"]
    assert isinstance(made, Made) and made.args == (str(mark),)
    assert made.of == Name("posix", "mkdir") and not mark.exists()
    pickle.loads(data)
    assert mark.exists(), "the pickle does what it says where it is loaded"


def test_a_build_reaches_no_object_of_ours() -> None:
    """State for what a table gives, and for a name, is dropped: it cannot change our functions."""

    def ours(*args: Any) -> dict[str, Any]:
        return {}

    # A global of the table, then state for it; and for what it makes.
    for middle in (b"", b")R"):
        data = b"\x80\x02cours\nours\n" + middle + b"}X\x0c\x00\x00\x00__defaults__K\x01sb."
        before = (ours.__defaults__, dict(vars(ours)))
        run(data, {"ours.ours": ours})
        assert (ours.__defaults__, dict(vars(ours))) == before


def test_objects_become_records() -> None:
    made = run(pickle.dumps(collections.Counter("aab"), protocol=4))
    assert made.of == Name("collections", "Counter") and made.args == ({"a": 2, "b": 1},)
    point = run(pickle.dumps(Point(1, [2]), protocol=2))
    assert point.of.name == "Point" and point.state == {"x": 1, "y": [2]}
    items = run(pickle.dumps(collections.deque([1, 2]), protocol=2))
    assert items.items == [1, 2]
    ordered = run(pickle.dumps(collections.OrderedDict(a=1), protocol=2))
    assert ordered.entries == {"a": 1}


class Point:
    def __init__(self, x: int, y: list[int]) -> None:
        self.x, self.y = x, y


def test_every_step_of_pickletools_is_known_or_pushes_what_it_carries() -> None:
    pushes = {
        op.name
        for op in pickletools.opcodes
        if op.stack_before == [] and op.arg is not None and len(op.stack_after) == 1
    }
    from passportize.suspects import pickle_machine as machine

    special = {*machine._PUT, *machine._GET, *machine._CONSTANTS, *machine._EMPTY}
    special |= {*machine._TUPLES, *machine._SPECIAL, "STOP"}
    # Buffers lie outside of a pickle, which nobody does in a file.
    left = {op.name for op in pickletools.opcodes} - special - pushes
    assert left == {"NEXT_BUFFER", "READONLY_BUFFER"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02.",
        b"\x80\x02h\x05.",
        b"\x80\x02K\x01R.",
        b"\x80\x02(",
        b"\x80\x02t.",
        b"\x80\x02}K\x01a.",
        b"\x80\x02]K\x01K\x02s.",
        b"c" + b"a" * 100_000 + b"\n",
        b"\xff.",
    ],
)
def test_what_is_no_pickle_is_damaged(data: bytes) -> None:
    with pytest.raises(Damaged):
        run(data)


def test_the_next_pickle_of_a_stream() -> None:
    stream = WindowStream(memoryview(pickle.dumps([1]) + pickle.dumps({"a": 2}) + b"rest"))
    assert run_pickle(stream, Budget(0), {}) == [1]
    assert run_pickle(stream, Budget(0), {}) == {"a": 2}
    assert stream.read() == b"rest"
