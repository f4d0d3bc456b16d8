"""Hostile files of every kind: an error of ours, within two seconds and 200 MB, and no code run."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from passportize.errors import CheckpointError
from passportize.suspects import KINDS, read_suspect
from tests.support.hostile_files import HOSTILE

MEGABYTES = 200
# Two on a core of its own; where the other half of the core is at work, a second takes two.
SECONDS = 4.0
CASES = [(kind, what) for kind, files in HOSTILE.items() for what in files]
# These are only named, never looked into.
UNREAD = {"a zip archive", "a packed file", "a tar archive", "a TensorFlow SavedModel"}
MARK = Path("/tmp/passportize_was_here")


def resident(line: str) -> int:
    """Kilobytes of this process: now (VmRSS), or at most since it was last asked (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(line + ":")[2].split()[0])


def test_every_kind_has_a_hostile_file() -> None:
    assert set(HOSTILE) == {kind.name for kind in KINDS} - UNREAD


@pytest.mark.parametrize(("kind", "what"), CASES)
def test_a_hostile_file_is_refused(kind: str, what: str, tmp_path: Path) -> None:
    path = HOSTILE[kind][what](tmp_path)
    Path("/proc/self/clear_refs").write_text("5")
    before, start = resident("VmRSS"), time.process_time()
    with pytest.raises(CheckpointError) as caught:
        read_suspect(path)
    assert time.process_time() - start < SECONDS
    assert (resident("VmHWM") - before) / 1024 < MEGABYTES
    assert not MARK.exists()
    message = str(caught.value)
    assert message.startswith(str(path)) and len(message) < len(str(path)) + 600
    assert kind in message or "zip archive" in message
    assert "weights_only" not in message and "\x1b" not in message
    assert caught.value.__context__ is None or caught.value.__suppress_context__


@pytest.mark.skipif(os.geteuid() != 0, reason="reads what root may read")
def test_no_other_file_is_shown(tmp_path: Path) -> None:
    for kind, files in HOSTILE.items():
        for what, make in files.items():
            if "another" in what or "absolute" in what:
                folder = tmp_path / f"{kind}{what}".replace(" ", "_")
                folder.mkdir()
                with pytest.raises(CheckpointError) as caught:
                    read_suspect(make(folder))
                assert "root:" not in str(caught.value)
