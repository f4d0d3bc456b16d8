"""What a model card may say of the mark: as much as the owner wants, and nothing for a thief."""

from __future__ import annotations

import re
from dataclasses import dataclass

from passportize.errors import InvalidArgument

__all__ = ["Notice"]

_DIGEST = re.compile(r"[0-9a-f]{64}")

_MARKED = (
    "These weights are marked. The owner can show that a copy of them, or a model made from them,",
    "is theirs.",
)


@dataclass(frozen=True)
class Notice:
    """A paragraph for a model card: that the model is marked, what was published, how to ask.

    Neither how the model is marked nor where, by how many bits or with which software: that would
    tell a thief what to look for, and it is not needed by anybody who asks.

    >>> print(Notice(contact="models@acme.example").to_markdown())
    ## Ownership
    <BLANKLINE>
    These weights are marked. The owner can show that a copy of them, or a model made from them,
    is theirs.
    <BLANKLINE>
    Questions about licences and about copies: models@acme.example
    <BLANKLINE>

    Attributes:
        contact: How to ask; an address, say.
        digest: What was published before the release: the claim's digest, 64 hex digits.

    Raises:
        InvalidArgument: The digest is none, or the contact has several lines.
    """

    contact: str = ""
    digest: str = ""

    def __post_init__(self) -> None:
        if self.digest and not _DIGEST.fullmatch(self.digest):
            raise InvalidArgument("a notice takes the digest of a claim: 64 hex digits, or none")
        if "\n" in self.contact or "\r" in self.contact:
            raise InvalidArgument("the contact of a notice is one line")

    def to_markdown(self) -> str:
        """The section of the card."""
        lines = ["## Ownership", "", *_MARKED]
        if self.digest:
            lines += ["", f"What the proof rests on has the SHA-256 digest `{self.digest}`."]
        if self.contact:
            lines += ["", f"Questions about licences and about copies: {self.contact}"]
        return "\n".join([*lines, ""])
