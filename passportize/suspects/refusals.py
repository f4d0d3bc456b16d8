"""Why a file is not read: signals of the readers, which the face of the room turns into errors."""

from __future__ import annotations

__all__ = ["Damaged", "Unsupported"]


class Damaged(Exception):
    """The bytes are not what the file itself says that they are; the message says where."""


class Unsupported(Exception):
    """The file is whole, as far as it was looked at, but not to be read here.

    Attributes:
        reason: What is in the way.
        remedy: What to do instead.
    """

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy
