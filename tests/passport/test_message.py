"""The owner message as text and as bytes."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tests.support.independent_passport as independent
from passportize.errors import InvalidArgument, MessageTooLong
from passportize.passport.message import FRAME_OVERHEAD, OwnerMessage

NAMES = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), max_size=60)
MESSAGE = OwnerMessage("Acme Vision", "legal@acme.example", "2026-11-23")


@settings(max_examples=100, deadline=None)
@given(NAMES, NAMES, st.dates())
def test_payload_comes_back(owner, contact, date):
    try:
        message = OwnerMessage.normalized(owner, contact, date.isoformat())
    except MessageTooLong:
        assert len((owner + contact).encode()) > 200
        return
    except InvalidArgument:
        assert not owner.strip()
        return
    assert OwnerMessage.from_payload(message.payload) == message
    assert message.frame_bits == 8 * len(message.frame)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40))
def test_arbitrary_bytes_are_a_message_or_refused(payload):
    try:
        message = OwnerMessage.from_payload(payload)
    except InvalidArgument:
        return
    assert message.payload == payload


@settings(max_examples=100, deadline=None)
@given(NAMES.filter(str.strip), NAMES, st.dates())
def test_bytes_are_those_of_the_format(owner, contact, date):
    message = (
        OwnerMessage.normalized(owner[:30], contact[:30], date.isoformat())
        if owner[:30].strip()
        else MESSAGE
    )
    assert message.payload == independent.payload(message.owner, message.contact, message.date)
    assert message.frame == independent.frame(message.payload)
    assert len(message.frame) == FRAME_OVERHEAD + len(message.payload)
    assert OwnerMessage.from_frame(message.frame) == message


@pytest.mark.parametrize("place", range(len(MESSAGE.frame)))
def test_no_byte_of_a_frame_can_be_changed(place):
    frame = bytearray(MESSAGE.frame)
    frame[place] ^= 1
    with pytest.raises(InvalidArgument):
        OwnerMessage.from_frame(bytes(frame))


@pytest.mark.parametrize("frame", [b"", b"\1", MESSAGE.frame[:-1], MESSAGE.frame + b"\0"])
def test_frames_of_another_length_are_none(frame):
    with pytest.raises(InvalidArgument):
        OwnerMessage.from_frame(frame)


def test_a_message_has_one_spelling():
    """Text that a person would type otherwise is taken as it is, and cleaned by `normalized`."""
    assert OwnerMessage(" Acme", "", "2026-01-01").owner == " Acme"
    assert OwnerMessage.normalized(" Acme\t ", "", "2026-01-01").owner == "Acme"
    assert OwnerMessage.normalized("Rene\u0301e", "", "2026-01-01").owner == "Ren\u00e9e"
    today = datetime.datetime.now(datetime.timezone.utc).date()
    made = datetime.date.fromisoformat(OwnerMessage.normalized("Acme").date)
    assert made - today in (datetime.timedelta(0), datetime.timedelta(1))


def test_text_leaves_out_what_is_empty():
    assert MESSAGE.text == "Acme Vision, legal@acme.example, 2026-11-23"
    assert OwnerMessage("Acme", "", "2026-01-01").text == "Acme, 2026-01-01"


@pytest.mark.parametrize(
    ("owner", "contact", "date"),
    [
        ("", "", "2026-01-01"),
        ("a\0", "", "2026-01-01"),
        ("a\u2028", "", "2026-01-01"),
        ("a\u202e", "", "2026-01-01"),
        ("\ud800", "", "2026-01-01"),
        ("a", "b\n", "2026-01-01"),
        ("a", None, "2026-01-01"),
        ("a", "", "2026-1-1"),
        ("a", "", "20260101"),
        ("a", "", "2026-W01-1"),
        ("a", "", "0000-01-01"),
        ("a", "", ""),
    ],
)
def test_what_is_no_message_is_refused(owner, contact, date):
    with pytest.raises(InvalidArgument):
        OwnerMessage(owner, contact, date)


def test_the_longest_message_takes_255_bytes():
    assert len(OwnerMessage("é" * 100, "c" * 51, "2026-01-01").payload) == 255
    with pytest.raises(MessageTooLong, match="256 bytes"):
        OwnerMessage("é" * 100, "c" * 52, "2026-01-01")
    with pytest.raises(MessageTooLong):
        OwnerMessage("é" * 128, "", "2026-01-01")
