"""What was examined, with what and when: the top of a report, so that another can repeat it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from passportize.errors import InvalidArgument
from passportize.utils.files import sha256_of_file

__all__ = ["Examination", "ExaminedFile"]


@dataclass(frozen=True)
class ExaminedFile:
    """One file that was read.

    Attributes:
        path: As it was given.
        sha256: Digest of its bytes, hex.
        size: In bytes.
    """

    path: str
    sha256: str
    size: int

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> ExaminedFile:
        """Read a file once for its digest.

        Raises:
            InvalidArgument: It cannot be read.
        """
        digest = sha256_of_file(path, error=InvalidArgument)
        return cls(str(path), digest, Path(path).stat().st_size)

    @classmethod
    def all_of(cls, path: str | os.PathLike[str]) -> tuple[ExaminedFile, ...]:
        """A file, or every file below a folder, sorted by path."""
        folder = Path(path)
        if not folder.is_dir():
            return (cls.of(path),)
        return tuple(cls.of(file) for file in sorted(folder.rglob("*")) if file.is_file())


@dataclass(frozen=True)
class Examination:
    """Under what circumstances a verdict was found. All of it is shown, none of it judged.

    Attributes:
        files: What was examined.
        when: Time of the examination, in UTC.
        command: The command line, with no secret in it.
        owner: Who claims, as their passport says.
        commitment: Commitment of the passport, hex.
        published: What is known of a release commitment and its timestamp, as sentences.
        data: What accuracies were measured on.
        preprocessing: How pictures were prepared, and whose word that is.
        compared: Other files that were read, by what they are: the released weights, say.
    """

    files: tuple[ExaminedFile, ...] = ()
    when: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    command: str = ""
    owner: str = ""
    commitment: str = ""
    published: str = ""
    data: str = ""
    preprocessing: str = ""
    compared: tuple[tuple[str, ExaminedFile], ...] = ()
