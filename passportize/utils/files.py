"""Files that appear complete or not at all, and files that are read up to a limit."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
from pathlib import Path

from passportize.errors import PassportizeError

__all__ = ["check_writable", "read_limited", "sha256_of_file", "write_atomically"]


def read_limited(
    path: str | os.PathLike[str], largest: int, *, error: type[PassportizeError]
) -> bytes:
    """Read a file that nobody vouches for.

    Args:
        path: The file.
        largest: Bytes that it may have.
        error: Class to raise, with path, reason and next step.

    Raises:
        PassportizeError: Of the class ``error``: missing, no regular file, too large, unreadable.
    """
    file = Path(path)
    try:
        # A pipe or a device would block or never end.
        regular = stat.S_ISREG(file.stat().st_mode)
        data = b""
        if regular:
            with file.open("rb") as stream:
                data = stream.read(largest + 1)
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or "the path is not valid"
        raise error(f"{file}: {reason}; check the path") from None
    if not regular:
        raise error(f"{file}: this is not a file; check the path")
    if len(data) > largest:
        raise error(f"{file}: larger than {largest:,} bytes; check the path")
    return data


def sha256_of_file(path: str | os.PathLike[str], *, error: type[PassportizeError]) -> str:
    """SHA-256 of the bytes of a file of any size, as hex.

    Args:
        path: The file.
        error: Class to raise, with path, reason and next step.

    Raises:
        PassportizeError: Of the class ``error``: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or "the path is not valid"
        raise error(f"{path}: {reason}; check the path") from None
    return digest.hexdigest()


def write_atomically(
    path: str | os.PathLike[str],
    data: bytes,
    mode: int = 0o644,
    *,
    overwrite: bool = True,
    error: type[PassportizeError] | None = None,
) -> None:
    """Write a file so that readers see the old content or the new one, never a part.

    The data goes to a temporary file in the same folder, created with ``mode`` (less the umask)
    before the first byte, is synced to the disk and renamed. Nothing is left behind on an error.

    Args:
        path: Where to. A symbolic link there is replaced, not followed.
        data: All of the content.
        mode: Permissions from the first byte on, ``0o600`` for secrets.
        overwrite: Whether an existing file is replaced; if not, even one that appears meanwhile
            is kept.
        error: Class to raise instead of ``OSError``, with path, reason and next step.

    Raises:
        FileExistsError: There is such a file and ``overwrite`` is off.
        OSError: The file cannot be written.
    """
    target = Path(path)
    try:
        _write(target, data, mode, overwrite)
    except (OSError, ValueError) as problem:
        if error is None:
            raise
        raise error(_cannot(target, problem, overwrite)) from None


def check_writable(
    path: str | os.PathLike[str], *, overwrite: bool = True, error: type[PassportizeError]
) -> None:
    """Try whether :func:`write_atomically` could write a file now; nothing is left behind.

    Args:
        path: Where to.
        overwrite: Whether an existing file would be replaced.
        error: Class to raise, with path, reason and next step.

    Raises:
        PassportizeError: Of the class ``error``: it could not.
    """
    target = Path(path)
    try:
        _check_target(target, overwrite)
        temporary = target.parent / f".passportize-{secrets.token_hex(8)}.tmp"
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        temporary.unlink()
        with contextlib.suppress(FileNotFoundError):
            target.lstat()  # too long a name, say
    except (OSError, ValueError) as problem:
        raise error(_cannot(target, problem, overwrite)) from None


def _cannot(target: Path, problem: OSError | ValueError, overwrite: bool) -> str:
    if isinstance(problem, ValueError):
        return f"Cannot write {str(target)!r}: the path is not valid; choose another name"
    if isinstance(problem, FileExistsError) and not overwrite:
        reason, step = "it exists already", "choose another name or pass overwrite=True"
    else:
        reason, step = problem.strerror or type(problem).__name__, _next_step(problem)
    return f"Cannot write {target}: {reason}; {step}"


def _check_target(target: Path, overwrite: bool) -> None:
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    if not overwrite and os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))


def _write(target: Path, data: bytes, mode: int, overwrite: bool) -> None:
    _check_target(target, overwrite)
    temporary = target.parent / f".passportize-{secrets.token_hex(8)}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            temporary.replace(target)
        else:
            _publish(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def _publish(temporary: Path, target: Path) -> None:
    """Renames without ever replacing."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError:
        # No hard links here (FAT, some network shares): the check above has to do.
        temporary.replace(target)
    else:
        temporary.unlink()


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _next_step(problem: OSError) -> str:
    if isinstance(problem, FileNotFoundError):
        return "create the folder first"
    if isinstance(problem, IsADirectoryError):
        return "give the name of a file in it"
    if isinstance(problem, PermissionError):
        return "choose a folder you may write to"
    return "free some space or choose another folder"
