"""Values out of a JSON text that nobody vouches for, each of its type and in its range.

Whatever does not fit raises ValueError; JSON's ``true`` is no number, and a number no text.
"""

from __future__ import annotations

import base64
import json
from typing import Any, NoReturn, TypeVar

__all__ = [
    "base64_bytes",
    "count",
    "digest",
    "hex_bytes",
    "parse",
    "record",
    "require",
    "shape",
    "text",
    "typed",
]

Value = TypeVar("Value")


def parse(source: str) -> Any:
    """The value of a JSON text, in which a number is a number and a key stands once."""
    try:
        return json.loads(source, parse_constant=_no_constant, object_pairs_hook=_without_twins)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def require(sound: bool, reason: str) -> None:
    """Raise ValueError with the reason if something is not sound."""
    if not sound:
        raise ValueError(reason)


def typed(value: Any, kind: type[Value]) -> Value:
    """A value of exactly this type."""
    if type(value) is not kind:
        raise ValueError(f"expected {kind.__name__}, found {type(value).__name__}")
    return value


def record(value: Any, keys: set[str]) -> dict[str, Any]:
    """A dict with exactly these keys."""
    entries: dict[str, Any] = typed(value, dict)
    require(set(entries) == keys, f"entries missing or unknown: {sorted(set(entries) ^ keys)[:5]}")
    return entries


def text(value: Any) -> str:
    """A printable string."""
    string = typed(value, str)
    require(string.isprintable(), "text with control characters")
    return string


def count(value: Any, least: int = 0) -> int:
    """A whole number from ``least`` to less than ``2**40``."""
    number = typed(value, int)
    require(least <= number < 1 << 40, f"the number {number} is out of range")
    return number


def shape(value: Any) -> tuple[int, ...]:
    """The shape of a tensor: a list of counts."""
    return tuple(count(size) for size in typed(value, list))


def digest(value: Any) -> str:
    """A SHA-256 digest in hex."""
    hex_bytes(value, 32)
    return text(value)


def hex_bytes(value: Any, length: int) -> bytes:
    """Bytes in lower-case hex, so many of them."""
    string = text(value)
    sound = len(string) == 2 * length and not set(string) - set("0123456789abcdef")
    require(sound, f"expected {length} bytes in lower-case hex")
    return bytes.fromhex(string)


def base64_bytes(value: Any) -> bytes:
    """Bytes in base64 (RFC 4648, padded), in the one spelling that each value has."""
    string = text(value)
    require(string.isascii(), "expected base64")
    raw = base64.b64decode(string, validate=True)
    require(base64.b64encode(raw).decode() == string, "base64 with bits to spare")
    return raw


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    require(len(entries) == len(pairs), "a key stands twice")
    return entries


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"the number {name}")
