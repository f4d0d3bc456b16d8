"""JSON that nobody vouches for, and the values in it."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passportize.release import strict_json as strict


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ('{"a": 1, "a": 1}', "stands twice"),
        ('[{"a": {"b": 1, "c": 2, "b": 3}}]', "stands twice"),
        ('{"a": 1, "\\u0061": 1}', "stands twice"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("NaN", "the number NaN"),
        ("[-Infinity]", "the number -Infinity"),
        ("", "Expecting value"),
        ("1" * 5000, "Exceeds the limit"),
    ],
)
def test_refused(source, reason):
    with pytest.raises(ValueError, match=reason):
        strict.parse(source)


def test_parsed():
    assert strict.parse('{"a": [1, true, null, "x", 0.5]}') == {"a": [1, True, None, "x", 0.5]}


@given(st.binary())
def test_bytes_come_back(raw):
    assert strict.base64_bytes(base64.b64encode(raw).decode()) == raw
    assert strict.hex_bytes(raw.hex(), len(raw)) == raw


@pytest.mark.parametrize(
    "value", ["QQ", "QR==", "QQ==\n", "Q Q==", "QQ==QQ==", "\uff31Q==", 7, None]
)
def test_base64_has_one_spelling(value):
    with pytest.raises(ValueError):
        strict.base64_bytes(value)


@pytest.mark.parametrize("value", ["A0", "a", "a0a0", "g0", " a0", "\u0660\u0660", 7, None])
def test_hex_has_one_spelling(value):
    with pytest.raises(ValueError):
        strict.hex_bytes(value, 1)
