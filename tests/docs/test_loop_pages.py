"""The code on the pages about training frameworks runs as it stands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import passportize as pp
from passportize.release.notice import Notice
from tests.support.pages import blocks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:::(lightning|torch|transformers|accelerate)"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.manual_seed(0)
    yield


@pytest.mark.parametrize(
    ("page", "library"),
    [
        ("lightning", "lightning.pytorch"),
        ("transformers", "transformers"),
        ("accelerate", "accelerate"),
    ],
)
def test_page(page: str, library: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip(library)
    names: dict = {"__name__": "page"}
    for block in blocks(f"docs/{page}.md"):
        exec(block.text, names)
    verdict = names["verdict"]
    assert verdict.accepted and verdict.matched == verdict.total
    assert "verdict:" in capsys.readouterr().out
    if page == "transformers":
        assert isinstance(names["trainer"].notice, Notice)
    assert Path("acme.claim.safetensors").exists()
    assert pp.load_claim("acme.claim.safetensors").bits == verdict.total
