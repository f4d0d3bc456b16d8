"""The site: built without a warning, nothing from foreign hosts, every link alive."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.support import ROOT
from tests.support.browser import BROWSER, widths

pytest.importorskip("mkdocs")

LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
"""What a browser fetches by itself."""


class Links(HTMLParser):
    """Names of one page: what it loads, what it links to, what can be linked to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.linked: list[str] = []
        self.places: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.places |= {given[name] for name in ("id", "name") if name in given}
        if tag in LOADED and given.get("rel") not in ("canonical", "next", "prev"):
            self.loaded.append(given.get(LOADED[tag], ""))
        if tag == "a" and "href" in given:
            self.linked.append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Links]:
    folder = tmp_path_factory.mktemp("site") / "built"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "WARNING" not in done.stderr
    return {page: Links(page) for page in folder.rglob("*.html")}


@pytest.mark.slow
def test_nothing_comes_from_a_foreign_host(site: dict[Path, Links]) -> None:
    assert len(site) > 50
    for page, links in site.items():
        assert not [name for name in links.loaded if urlsplit(name).netloc], page
    root = next(page.parent for page in site if page.name == "404.html")
    for sheet in root.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert not re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", text), sheet


@pytest.mark.slow
def test_every_internal_link_is_alive(site: dict[Path, Links]) -> None:
    dead = []
    for page, links in site.items():
        if page.name == "404.html":
            continue
        for name in {*links.loaded, *links.linked}:
            parts = urlsplit(name)
            if parts.scheme or parts.netloc or not (parts.path or parts.fragment):
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if target.is_dir():
                target /= "index.html"
            place = unquote(parts.fragment)
            found = target.is_file() and (not place or place in site[target].places)
            if not found:
                dead.append((page.name, name))
    assert not dead


@pytest.mark.slow
def test_every_room_has_its_page(site: dict[Path, Links]) -> None:
    rooms = {path.parent.name for path in (ROOT / "passportize").glob("*/__init__.py")}
    pages = {page.stem: links for page, links in site.items() if page.parent.name == "api"}
    assert rooms <= set(pages)
    assert "passportize.verify" in pages["index"].places


@pytest.mark.slow
def test_roles_of_docstrings_are_links(site: dict[Path, Links]) -> None:
    for page in site:
        if page.parent.name == "api":
            text = page.read_text(encoding="utf-8")
            assert ":func:" not in text and ":class:" not in text and "&gt;</p>" not in text


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no browser here")
def test_no_page_is_wider_than_a_telephone(site: dict[Path, Links]) -> None:
    root = next(page.parent for page in site if page.name == "404.html")
    pages = ["index.html", "tour.html", "comparison.html", "timm.html", "api/training.html"]
    for name, (reach, beyond) in widths(root, pages, 390).items():
        assert reach <= 390 and not beyond, name
