"""audit: whether anything lies in a file or folder that must not go out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from passportize.cli.terminal import ACCEPTED, REFUSED, AsJson, command, emit, leave, working

__all__ = ["audit"]


@command
def audit(
    path: Annotated[Path, typer.Argument(help="A file, or a folder with all that is published.")],
    as_json: AsJson = False,
) -> None:
    """Search what will be published for passports, claims and traces: 0 clean, 1 not."""
    from passportize.release.audit_files import audit_files

    with working(f"reading {path}", as_json):
        found = audit_files(path)
    record = {
        "clean": found.clean,
        "findings": list(found.findings),
        "files": found.files,
        "path": str(path),
    }
    emit(record, f"{path}: {found}", as_json)
    leave(ACCEPTED if found.clean else REFUSED)
