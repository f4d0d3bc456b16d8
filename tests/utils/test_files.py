"""Files that nobody vouches for are read up to a limit."""

from __future__ import annotations

import os

import pytest

from passportize.errors import ClaimFileError, InvalidArgument
from passportize.utils.files import read_limited


def test_up_to_the_limit(tmp_path):
    file = tmp_path / "f"
    file.write_bytes(b"12345")
    assert read_limited(file, 5, error=ClaimFileError) == b"12345"
    with pytest.raises(ClaimFileError, match=r"larger than 4 bytes"):
        read_limited(file, 4, error=ClaimFileError)


def test_what_is_no_file(tmp_path):
    with pytest.raises(InvalidArgument, match="No such file"):
        read_limited(tmp_path / "missing", 9, error=InvalidArgument)
    with pytest.raises(ClaimFileError, match="not a file"):
        read_limited(tmp_path, 9, error=ClaimFileError)
    with pytest.raises(ClaimFileError, match="not valid"):
        read_limited("a\0b", 9, error=ClaimFileError)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes by name here")
def test_a_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ClaimFileError, match="not a file"):
        read_limited(tmp_path / "pipe", 9, error=ClaimFileError)
