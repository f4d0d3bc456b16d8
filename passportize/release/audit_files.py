"""Looking for anything that must not go out in the files of a release, before they do.

Files are read as bytes, archives member by member; nothing in them is run.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from passportize.errors import CheckpointError, PassportizeError
from passportize.layers.private_keys import private_keys
from passportize.passport.file import PASSPORT_FORMAT
from passportize.passport.sealing import SEALED_FORMAT
from passportize.release.audit import Findings
from passportize.release.checkpoint import read_checkpoint
from passportize.release.release_commitment import FORMAT as COMMITMENT

__all__ = ["FileAudit", "audit_files"]

_NAME, _PRIVATE = b"passportize", b".passport."
_PASSPORTS = tuple(f'"{name}"'.encode() for name in (PASSPORT_FORMAT, SEALED_FORMAT))
_CLAIM = b"passportize claim"
_UNREADABLE = (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError)
_MOST_BLOWN_UP = 64
_BLOCK, _LONGEST_HEADER = 1 << 20, 1 << 26
_TRAINING = {
    "optimizer": "the optimizer's state has the shapes of private parameters",
    "args": "the command line of the training",
}


@dataclass(frozen=True)
class FileAudit(Findings):
    """What was found in files. True in a condition if that is nothing.

    Attributes:
        findings: One line for each thing that must not go out.
        files: How many files were read.
    """

    files: int

    def __str__(self) -> str:
        if self.clean:
            return f"clean: {self.files} files"
        found = [f"{len(self.findings)} findings in {self.files} files:"]
        return "\n".join([*found, *(f"  {finding}" for finding in self.findings)])


def audit_files(path: str | os.PathLike[str]) -> FileAudit:
    """Search a file, or all files below a folder, for what an owner must not publish.

    That is: passports, claims, private tensors, the name of this library in any bytes, and what a
    training checkpoint holds beside the weights. A release commitment is meant to be published.

    Raises:
        CheckpointError: There is no such file, or one cannot be read.
    """
    root = Path(path)
    if not root.exists():
        raise CheckpointError(f"{root}: there is no such file or folder; check the path")
    below = [root] if root.is_file() else sorted(root.rglob("*"))
    files = [file for file in below if file.is_file()]
    findings = [
        f"{file.relative_to(root) if file != root else file}: {finding}"
        for file in files
        for finding in dict.fromkeys(_findings(file))
    ]
    return FileAudit(tuple(findings), len(files))


def _findings(file: Path) -> Iterator[str]:
    try:
        with file.open("rb") as stream:
            head = stream.read(1 << 12)
            if any(kind in head for kind in _PASSPORTS):
                yield "this is a passport: it must never leave your hands"
                return
            if head[8:9] == b"{" and _CLAIM in _header(stream):
                yield "this is a claim: keep it, and show it when you have to prove something"
                return
            if head.startswith(b"{") and COMMITMENT.encode() in head:
                return
            stream.seek(0)
            yield from _traces(stream, "")
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                for member in archive.infolist():
                    if member.compress_type == zipfile.ZIP_STORED:
                        continue
                    if member.file_size > _MOST_BLOWN_UP * (member.compress_size + _BLOCK):
                        yield f"its member {member.filename} is too large to be searched"
                        continue
                    with archive.open(member) as inside:
                        yield from _traces(inside, f" in its member {member.filename}")
    except _UNREADABLE as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(
            f"{file}: {reason}; it cannot be read, so it cannot be cleared"
        ) from (None)
    yield from _in_checkpoint(file)


def _header(stream: IO[bytes]) -> bytes:
    """The JSON at the front of a safetensors file, as far as it can be one."""
    stream.seek(0)
    return stream.read(8 + min(int.from_bytes(stream.read(8), "little"), _LONGEST_HEADER))


def _traces(stream: IO[bytes], where: str) -> Iterator[str]:
    """Names of ours among the bytes, whatever the format."""
    rest = b""
    while block := stream.read(_BLOCK):
        window = rest + block
        if _NAME in window.lower():
            yield f"its bytes name passportize{where}"
        if _PRIVATE in window:
            yield f"its bytes name a tensor of a private branch{where}"
        rest = window[-len(_NAME) :]


def _in_checkpoint(file: Path) -> Iterator[str]:
    try:
        content = read_checkpoint(file)
    except PassportizeError:
        return  # no checkpoint: its bytes were looked at
    if isinstance(content, Mapping):
        for name, what in _TRAINING.items():
            if name in content:
                yield f"{name}: {what}"
        yield from _private(content, "", 4)


def _private(content: Mapping[Any, Any], place: str, depth: int) -> Iterator[str]:
    private = len(private_keys(content))
    if private:
        yield f"{private} tensors of private branches{place}"
    if depth:
        for name, value in content.items():
            if isinstance(value, Mapping):
                yield from _private(value, f" under {str(name)[:60]}", depth - 1)
