"""The node tree of VRML 2.0 (VRML97) files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from passportize.errors import DatasetError

__all__ = ["MAX_DEPTH", "Node", "Parser", "VrmlError"]

MAX_DEPTH = 200
"""Nodes nested deeper than this are taken for an attack or an accident."""

# Arrays of numbers are most of a file, so they are one token each; comments and strings come
# first, for a bracket inside them opens nothing.
_TOKEN = re.compile(
    rb'#[^\r\n]*|"(?:[^"\\]|\\.)*"|\[[-+.\deE,\s]*\]|[\[\]{}]|[^\s,\[\]{}"#]+', re.DOTALL
)
_NUMBER = re.compile(rb"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?\Z")


class VrmlError(DatasetError):
    """A VRML file is damaged or uses something that this reader does not know."""


@dataclass
class Node:
    """A node: its type and its fields."""

    kind: str
    fields: dict[str, Any] = field(default_factory=dict)


class Parser:
    """Turns the text into nested nodes."""

    def __init__(self, data: bytes) -> None:
        self._tokens = (m.group() for m in _TOKEN.finditer(data) if not m.group().startswith(b"#"))
        self._next: bytes | None = next(self._tokens, None)
        self._defined: dict[bytes, Node | None] = {}

    def scene(self) -> Iterator[Node]:
        """The nodes at the top level, in order.

        Raises:
            VrmlError: The text is damaged or uses ``PROTO``.
        """
        while self._next is not None:
            if self._next == b"ROUTE":
                for _ in range(4):
                    self._take()
                continue
            node = self._node(0)
            if node is not None:
                yield node

    def _take(self) -> bytes:
        token = self._next
        if token is None:
            raise VrmlError("the file ends in the middle of a node")
        self._next = next(self._tokens, None)
        return token

    def _node(self, depth: int) -> Node | None:
        if depth > MAX_DEPTH:
            raise VrmlError(f"nodes are nested more than {MAX_DEPTH} deep")
        token = self._take()
        if token == b"NULL":
            return None
        if token == b"USE":
            name = self._take()
            if name not in self._defined:
                raise VrmlError(f"USE of undefined node {name.decode('ascii', 'replace')}")
            return self._defined[name]
        name = b""
        if token == b"DEF":
            name, token = self._take(), self._take()
        kind = token.decode("ascii", "replace")
        if kind in ("PROTO", "EXTERNPROTO"):
            raise VrmlError(f"{kind} is not read")
        if not kind[:1].isalpha() or self._take() != b"{":
            raise VrmlError(f"expected a node, found {kind[:40]!r}")
        node = Node(kind)
        while self._next != b"}":
            name_of_field = self._take().decode("ascii", "replace")
            if name_of_field == "ROUTE":
                for _ in range(3):
                    self._take()
                continue
            node.fields[name_of_field] = self._value(depth)
        self._take()
        if name:
            self._defined[name] = node
        return node

    def _value(self, depth: int) -> Any:
        token = self._next
        if token is None:
            raise VrmlError("the file ends in the middle of a node")
        if token in (b"TRUE", b"FALSE"):
            return self._take() == b"TRUE"
        if token.startswith(b'"'):
            return self._take()
        if len(token) > 1 and token.startswith(b"["):
            return _numbers(self._take()[1:-1])
        if token == b"[":
            return self._array(depth)
        if _NUMBER.match(token):
            numbers = []
            while self._next is not None and _NUMBER.match(self._next):
                numbers.append(float(self._take()))
            return np.array(numbers)
        return self._node(depth + 1)

    def _array(self, depth: int) -> Any:
        self._take()
        items = []
        while self._next != b"]":
            items.append(self._value(depth))
        self._take()
        if items and all(isinstance(item, np.ndarray) for item in items):
            return np.concatenate(items)
        return items


def _numbers(text: bytes) -> NDArray[np.float64]:
    try:
        return np.array(text.replace(b",", b" ").split(), dtype=np.float64)
    except ValueError as error:
        raise VrmlError("an array holds something that is no number") from error
