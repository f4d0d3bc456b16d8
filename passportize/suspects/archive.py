"""Members of a zip archive: views of the file, or unpacked to a limit."""

from __future__ import annotations

import struct
import zipfile
import zlib

from passportize.suspects.refusals import Damaged, Unsupported
from passportize.suspects.window import Window

__all__ = ["Archive", "is_archive"]

_LOCAL, _END, _END_64, _LOCATOR_64 = b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
# About a hundred thousand members; zipfile makes an object of half a kilobyte for each.
LARGEST_DIRECTORY = 8 * 2**20
LARGEST_TEXT = 8 * 2**20


def is_archive(window: Window) -> bool:
    """Whether bytes begin as a zip archive."""
    return bytes(window.data[:4]) == _LOCAL


class Archive:
    """A zip archive.

    Args:
        window: Its bytes.

    Raises:
        Damaged: It has no directory of its members, as after a copy that broke off.
    """

    def __init__(self, window: Window) -> None:
        self._window = window
        _check_directory(window)
        try:
            with zipfile.ZipFile(window.stream()) as opened:
                entries = opened.infolist()
        except (zipfile.BadZipFile, struct.error, UnicodeDecodeError, ValueError) as error:
            raise Damaged(f"the directory of the archive: {error}") from None
        self._entries = {entry.filename: entry for entry in entries if not entry.is_dir()}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the members, in their order."""
        return tuple(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def member(self, name: str) -> Window:
        """The bytes of a member.

        Raises:
            Damaged: It is not there, reaches beyond the file, or unfolds to more than it says.
            Unsupported: It is encrypted, or packed by a method that no reader here knows.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise Damaged(f"member {name} is missing")
        if entry.flag_bits & 1:
            raise Unsupported("it is encrypted", "get a copy without a passphrase")
        head = self._window.read(entry.header_offset, 30, name)
        if head[:4] != _LOCAL:
            raise Damaged(f"member {name} does not lie where the directory says")
        start = entry.header_offset + 30 + sum(struct.unpack("<HH", head[26:30]))
        packed = self._window.part(start, entry.compress_size, name)
        if entry.compress_type == zipfile.ZIP_STORED:
            if entry.file_size != entry.compress_size:
                raise Damaged(f"member {name} has two sizes")
            return packed
        if entry.compress_type != zipfile.ZIP_DEFLATED:
            raise Unsupported(
                f"member {name} is packed by method {entry.compress_type}", "unpack it first"
            )
        self._window.budget.charge(entry.file_size, name)
        return Window(memoryview(_inflated(packed, entry.file_size, name)), self._window.budget)

    def text(self, name: str) -> bytes:
        """A small member as bytes.

        Raises:
            Damaged: As :meth:`member`, or it is not small.
        """
        window = self.member(name)
        if len(window) > LARGEST_TEXT:
            raise Damaged(f"member {name} is larger than {LARGEST_TEXT:,} bytes")
        return bytes(window.data)


def _inflated(packed: Window, size: int, name: str) -> bytearray:
    reader = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = bytearray(reader.decompress(packed.data, size + 1))
    except zlib.error as error:
        raise Damaged(f"member {name}: {error}") from None
    if len(data) != size:
        raise Damaged(f"member {name} does not unfold to the {size} bytes that it says")
    return data


def _check_directory(window: Window) -> None:
    """Refuse a directory that would take far more memory than the archive is worth."""
    length = len(window)
    start = max(0, length - 2**16 - 22)
    tail = bytes(window.data[start:])
    end = tail.rfind(_END)
    if end < 0 or end + 22 > len(tail):
        raise Damaged("the directory of the archive is missing; the file seems to be cut off")
    (size,) = struct.unpack_from("<I", tail, end + 12)
    locator = end - 20
    if locator >= 0 and tail[locator : locator + 4] == _LOCATOR_64:
        (place,) = struct.unpack_from("<Q", tail, locator + 8)
        record = window.read(place, 56, "the directory of the archive")
        if record[:4] == _END_64:
            (size,) = struct.unpack_from("<Q", record, 40)
    if size > LARGEST_DIRECTORY:
        raise Damaged(f"the directory of the archive has {size:,} bytes")
