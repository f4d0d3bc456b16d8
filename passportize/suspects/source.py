"""A suspect's file or folder, open for the readers, and what they give."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import Tensor

from passportize.suspects.archive import Archive, is_archive
from passportize.suspects.refusals import Damaged
from passportize.suspects.window import Budget, Window, map_file

__all__ = ["Found", "Source"]


@dataclass
class Found:
    """What a reader found.

    Attributes:
        tensors: Tensors by name, on the CPU: views of the file where they lie in it as they are.
        notes: What the reader of a verdict should know.
        scales: Scale of the adapters beside them, by the name of the layer; see
            :mod:`passportize.suspects.adapters_in`.
    """

    tensors: dict[str, Tensor]
    notes: list[str] = field(default_factory=list)
    scales: dict[str, float] = field(default_factory=dict)


@dataclass
class Source:
    """A file or a folder.

    Attributes:
        path: Where it is.
        key: Where in a training checkpoint to look, None for the usual places.
        budget: What tensors of it may take.
    """

    path: Path
    key: str | None = None
    budget: Budget = field(default_factory=lambda: Budget(0))

    @cached_property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return self.path.is_dir()

    @cached_property
    def window(self) -> Window:
        """The bytes of a file."""
        return map_file(self.path, self.budget)

    @cached_property
    def archive(self) -> Archive | None:
        """The members of a zip archive, None for any other file."""
        return Archive(self.window) if not self.is_folder and is_archive(self.window) else None

    @property
    def members(self) -> Archive:
        """The members of what is known to be an archive."""
        if self.archive is None:
            raise Damaged("it is no archive")
        return self.archive

    def head(self, length: int) -> bytes:
        """The first bytes of a file; fewer where there are fewer, none of a folder."""
        return b"" if self.is_folder else bytes(self.window.data[:length])

    def beside(self, name: str) -> Source:
        """A file that this one names, in its folder or below it.

        Raises:
            Damaged: The name leads out of the folder, or to nothing.
        """
        folder = self.path if self.is_folder else self.path.parent
        steps = name.replace("\\\\", "/").split("/")
        if not name or "\0" in name or ".." in steps or Path(name).is_absolute():
            raise Damaged(f"it names {name[:80]!r}, which is no file of its folder")
        place = folder / name
        if not place.is_file():
            raise Damaged(f"{name[:80]} is missing in {folder}")
        return Source(place, self.key, self.budget)
