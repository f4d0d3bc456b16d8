"""What a pickle describes, as data: nothing that it names is imported, called or made.

A pickle is a program for a stack machine that names functions and has them called. Here a global is
its name, a call is a record of name and arguments, and only the few names of a table lead to code,
which is this room's own. So there is nothing to allow or forbid: a class that is not in the table
becomes a :class:`Made`, whatever it is called.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Any, cast

from passportize.suspects.refusals import Damaged
from passportize.suspects.window import Budget, WindowStream

__all__ = ["Builder", "Made", "Name", "run_pickle"]

_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": list,
}
_PUT = {"PUT", "BINPUT", "LONG_BINPUT"}
_GET = {"GET", "BINGET", "LONG_BINGET"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
# Steps with a method of their own, by the names of pickletools.
_SPECIAL = (
    *("PROTO", "FRAME", "MARK", "MEMOIZE", "POP", "POP_MARK", "DUP", "TUPLE", "LIST", "FROZENSET"),
    *("DICT", "APPEND", "APPENDS", "ADDITEMS", "SETITEM", "SETITEMS", "GLOBAL", "STACK_GLOBAL"),
    *("REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST", "BUILD", "PERSID", "BINPERSID"),
)


@dataclass(frozen=True)
class Name:
    """A global that a pickle names.

    Attributes:
        module: Module.
        name: Name in it.
    """

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Made:
    """What would have become of a call, had it been made.

    Attributes:
        of: What would have been called: a name, or anything else that stood there.
        args: The arguments.
        state: What the object would have been filled with.
        entries: What would have been put into it by key.
        items: What would have been put into it one after the other.
    """

    of: Any
    args: tuple[Any, ...] = ()
    state: Any = None
    entries: dict[Any, Any] = field(default_factory=dict)
    items: list[Any] = field(default_factory=list)


Builder = Callable[..., Any]


def run_pickle(
    stream: WindowStream,
    budget: Budget,
    builders: Mapping[str, Builder],
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """What the next pickle of a stream describes; the stream then stands behind it.

    Args:
        stream: The bytes.
        budget: Of the file.
        builders: Code of ours by the names that lead to it; called with the arguments.
        persistent: What to take for an object that is kept outside of the pickle.

    Raises:
        Damaged: It is no pickle, or ends too early.
        Unsupported: It has more steps than any checkpoint; a state dict takes about 25 for each
            tensor.
    """
    machine = _Machine(builders, persistent)
    steps = 0
    try:
        with warnings.catch_warnings():
            # Old protocols hold text with escapes, and Python warns of those that it does not know.
            warnings.simplefilter("ignore", DeprecationWarning)
            for opcode, argument, _ in pickletools.genops(cast(IO[bytes], stream)):
                steps += 1
                budget.step()
                if opcode.name == "STOP":
                    return machine.stack.pop()
                machine.step(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise Damaged(f"the pickle, step {steps}: {error}") from None
    raise Damaged("the pickle has no end")


class _Machine:
    """Stack, marks and memo, and what each kind of step does to them."""

    def __init__(
        self, builders: Mapping[str, Builder], persistent: Callable[[Any], Any] | None
    ) -> None:
        self._builders = builders
        self._persistent = persistent
        self.stack: list[Any] = []
        self._memo: dict[int, Any] = {}

        self._steps: dict[str, Callable[[Any], None]] = {
            **dict.fromkeys(_PUT, self._put),
            **dict.fromkeys(_GET, self._get),
            **{name: partial(self._push, value) for name, value in _CONSTANTS.items()},
            **{name: partial(self._empty, kind) for name, kind in _EMPTY.items()},
            **{name: partial(self._short_tuple, count) for name, count in _TUPLES.items()},
            **{name: getattr(self, f"_{name.lower()}") for name in _SPECIAL},
        }

    def step(self, name: str, argument: Any) -> None:
        special = self._steps.get(name)
        if special is not None:
            special(argument)
        else:
            # All others push the number, text or bytes that they carry.
            self.stack.append(argument)

    def _put(self, argument: int) -> None:
        self._memo[argument] = self.stack[-1]

    def _memoize(self, argument: None) -> None:
        self._memo[len(self._memo)] = self.stack[-1]

    def _get(self, argument: int) -> None:
        self.stack.append(self._memo[argument])

    def _push(self, value: Any, argument: None) -> None:
        self.stack.append(value)

    def _empty(self, kind: Callable[[], Any], argument: None) -> None:
        self.stack.append(kind())

    def _mark(self, argument: None) -> None:
        self.stack.append(_MARK)

    def _short_tuple(self, count: int, argument: None) -> None:
        self._replace(count, tuple(self.stack[-count:]))

    def _replace(self, count: int, value: Any) -> None:
        if len(self.stack) < count:
            raise ValueError("too few values")
        del self.stack[-count:]
        self.stack.append(value)

    def _since_mark(self) -> list[Any]:
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is _MARK:
                values = self.stack[place + 1 :]
                del self.stack[place:]
                return values
        raise ValueError("no mark")

    def _proto(self, argument: int) -> None:
        pass

    _frame = _proto

    def _pop(self, argument: None) -> None:
        self.stack.pop()

    def _pop_mark(self, argument: None) -> None:
        self._since_mark()

    def _dup(self, argument: None) -> None:
        self.stack.append(self.stack[-1])

    def _tuple(self, argument: None) -> None:
        self.stack.append(tuple(self._since_mark()))

    def _list(self, argument: None) -> None:
        self.stack.append(self._since_mark())

    _frozenset = _list

    def _dict(self, argument: None) -> None:
        entries: dict[Any, Any] = {}
        _fill(entries, self._since_mark())
        self.stack.append(entries)

    def _append(self, argument: None) -> None:
        value = self.stack.pop()
        _items(self.stack[-1]).append(value)

    def _appends(self, argument: None) -> None:
        values = self._since_mark()
        _items(self.stack[-1]).extend(values)

    _additems = _appends

    def _setitem(self, argument: None) -> None:
        values = self.stack[-2:]
        del self.stack[-2:]
        _fill(_entries(self.stack[-1]), values)

    def _setitems(self, argument: None) -> None:
        values = self._since_mark()
        _fill(_entries(self.stack[-1]), values)

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(Name(module, name))

    def _stack_global(self, argument: None) -> None:
        module, name = self.stack[-2:]
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a global without a name")
        self._replace(2, Name(module, name))

    def _reduce(self, argument: None) -> None:
        function, arguments = self.stack[-2:]
        self._replace(2, self._called(function, arguments))

    _newobj = _reduce

    def _newobj_ex(self, argument: None) -> None:
        function, arguments, _ = self.stack[-3:]
        self._replace(3, self._called(function, arguments))

    def _obj(self, argument: None) -> None:
        function, *arguments = self._since_mark()
        self.stack.append(self._called(function, tuple(arguments)))

    def _inst(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(self._called(Name(module, name), tuple(self._since_mark())))

    def _called(self, function: Any, arguments: Any) -> Any:
        if not isinstance(arguments, tuple):
            raise ValueError("a call without arguments")
        builder = self._builders.get(str(function)) if isinstance(function, Name) else None
        return builder(*arguments) if builder is not None else Made(function, arguments)

    def _build(self, argument: None) -> None:
        state = self.stack.pop()
        made = self.stack[-1]
        if hasattr(made, "fill"):
            made.fill(state)
        elif isinstance(made, Made):
            made.state = state

    def _persid(self, argument: Any) -> None:
        self.stack.append(self._kept(argument))

    def _binpersid(self, argument: None) -> None:
        self.stack.append(self._kept(self.stack.pop()))

    def _kept(self, identity: Any) -> Any:
        return None if self._persistent is None else self._persistent(identity)


def _items(target: Any) -> list[Any]:
    items = target.items if isinstance(target, Made) else target
    if not isinstance(items, list):
        raise ValueError("items for what is no list")
    return items


def _entries(target: Any) -> dict[Any, Any]:
    entries = target.entries if isinstance(target, Made) else target
    if not isinstance(entries, dict):
        raise ValueError("entries for what is no dict")
    return entries


def _fill(entries: dict[Any, Any], values: list[Any]) -> None:
    if len(values) % 2:
        raise ValueError("a key without a value")
    for key, value in zip(values[::2], values[1::2], strict=True):
        entries[_key(key)] = value


def _key(key: Any) -> Any:
    """What stands for a key: itself if it is plain, else a thing of its own.

    Deeply nested tuples would be hashed by recursion in C, down to the end of the stack.
    """
    if isinstance(key, (str, bytes, int, float, bool, Name, Made, type(None))):
        return key
    plain = isinstance(key, tuple) and all(isinstance(part, (str, bytes, int)) for part in key)
    return key if plain else Made(None, (key,))
