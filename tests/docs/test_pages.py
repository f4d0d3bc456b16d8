"""Every block of code on every page runs as it stands, in the order of the page."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("timm")
pytest.importorskip("asn1crypto")
pytest.importorskip("rfc3161_client")

from passportize.cli.application import application
from passportize.passport.file import PASSPHRASE
from tests.support import ROOT
from tests.support.page_settings import SETTINGS, make_kit
from tests.support.pages import EXCEPTIONS, Reader, blocks, pages_with_blocks

pytestmark = [
    # timm leaves the files of its dataset open until they are collected.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("kit")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv(PASSPHRASE, "")
        make_kit()
    yield folder
    torch.set_num_threads(threads)


ELSEWHERE = {
    "docs/accelerate.md": "tests/docs/test_loop_pages.py",
    "docs/attacks.md": "tests/docs/test_attacks_page.py",
    "docs/commitment.md": "tests/docs/test_commitment_page.py",
    "docs/lightning.md": "tests/docs/test_loop_pages.py",
    "docs/other_loops.md": "tests/docs/test_other_loops.py",
    "docs/transformers.md": "tests/docs/test_loop_pages.py",
    # Its package is 379 MB to download; small ones of its kind are read there.
    "docs/data.md": "tests/data/test_data.py",
}
"""Pages that tests of their own cover."""


def test_no_page_is_forgotten() -> None:
    assert set(pages_with_blocks()) == {*SETTINGS, *ELSEWHERE}
    assert all((ROOT / test).is_file() for test in ELSEWHERE.values())


@pytest.mark.slow
@pytest.mark.parametrize("page", SETTINGS)
def test_page(
    page: str, kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_adapters: None
) -> None:
    setting = SETTINGS[page]
    place = tmp_path / "reader"
    shutil.copytree(kit, place)
    monkeypatch.chdir(place)
    monkeypatch.setenv(PASSPHRASE, setting.words)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for path in map(Path, setting.gone):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    torch.manual_seed(0)
    reader = Reader(setting.names(), setting.words)
    for number, block in enumerate(blocks(page)):
        setting.before.get(number, lambda _: None)(reader)
        reader.read(block)
    setting.after(reader)


def test_what_is_not_run_is_little() -> None:
    """An exception that no page needs any more is taken off the list."""
    shown = "".join(block.text for page in pages_with_blocks() for block in blocks(page))
    assert not [program for program in EXCEPTIONS if not re.search(rf"\b{program}\b", shown)]


def test_commands_in_sentences_are_there() -> None:
    registered = application().registered_commands
    known = {info.name or getattr(info.callback, "__name__", "") for info in registered}
    for page in ROOT.glob("docs/**/*.md"):
        named = set(re.findall(r"`passportize ([a-z-]+)", page.read_text(encoding="utf-8")))
        assert named <= known, page
