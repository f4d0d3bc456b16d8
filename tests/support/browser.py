"""Pages looked at in a real browser: Chromium without a window, with nothing from the network."""

from __future__ import annotations

import contextlib
import functools
import html
import http.server
import json
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = [
    "BROWSER",
    "measure",
    "print_pdf",
    "served",
    "take_picture",
    "take_picture_of_site",
    "widths",
]

BROWSER = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
        if (path := shutil.which(name))
    ),
    None,
)
"""Path of a browser, None if there is none. Debian's package is ``chromium``."""

_OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
)
_DARK = "--blink-settings=preferredColorScheme=0"

# What is asked of every page, in its own frame.
_MEASURING = """
function luminance(colour) {
  const part = colour.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255).map(
    v => v <= 0.03928 ? v / 12.92 : Math.pow((v + 0.055) / 1.055, 2.4));
  return 0.2126 * part[0] + 0.7152 * part[1] + 0.0722 * part[2];
}
function ground(view, element) {
  for (; element; element = element.parentElement) {
    const colour = view.getComputedStyle(element).backgroundColor;
    if (!/^rgba.*, 0\\)$|transparent/.test(colour)) return colour;
  }
  return "rgb(255, 255, 255)";
}
function measured(frame) {
  const view = frame.contentWindow, page = frame.contentDocument, root = page.scrollingElement;
  const found = {overflow: root.scrollWidth - root.clientWidth, height: root.scrollHeight,
    cut: [], faint: [], small: [], pictures: [], boxes: {}};
  for (const element of page.body.querySelectorAll("*")) {
    const box = element.getBoundingClientRect(), style = view.getComputedStyle(element);
    if (!box.width || style.display === "none") continue;
    const name = element.tagName + "." + element.className;
    if (box.right > root.clientWidth + 0.5 || box.left < -0.5 ||
        (element.scrollWidth > element.clientWidth + 1 && style.display !== "inline"))
      found.cut.push(name);
    const text = [...element.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    if (!text) continue;
    if (parseFloat(style.fontSize) < 13) found.small.push([name, style.fontSize]);
    const a = luminance(style.color), b = luminance(ground(view, element));
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) found.faint.push([name, contrast]);
  }
  for (const image of page.images)
    found.pictures.push([image.naturalWidth, image.getBoundingClientRect().width]);
  for (const name of ["found", "limits"]) {
    const element = page.querySelector("." + name), box = element.getBoundingClientRect();
    found.boxes[name] = [box.width, box.height,
      parseFloat(view.getComputedStyle(element).fontSize)];
  }
  found.ground = luminance(view.getComputedStyle(page.body).backgroundColor);
  return found;
}
window.onload = () => {
  const all = [...document.querySelectorAll("iframe")].map(measured);
  document.getElementById("found").textContent = JSON.stringify(all);
};
"""

_REACHING = """
function reaching(frame) {
  const page = frame.contentDocument, root = page.scrollingElement, beyond = [];
  const scrolls = element => {
    for (; element; element = element.parentElement)
      if (/auto|scroll|hidden/.test(frame.contentWindow.getComputedStyle(element).overflowX))
        return true;
    return false;
  };
  for (const element of page.querySelectorAll("article *"))
    if (element.getBoundingClientRect().right > root.clientWidth + 1 &&
        !scrolls(element.parentElement)) beyond.push(element.tagName + "." + element.className);
  return [root.scrollWidth, beyond.slice(0, 5)];
}
window.onload = () => {
  const all = [...document.querySelectorAll("iframe")].map(reaching);
  document.getElementById("found").textContent = JSON.stringify(all);
};
"""


def measure(pages: list[tuple[str, int]], *, dark: bool = False) -> list[dict[str, Any]]:
    """What a browser makes of pages, each with a width in pixels of its own.

    Returns:
        For every page: ``overflow`` in pixels, its ``height``, elements that are ``cut`` off, too
        ``faint`` or too ``small``, its ``pictures`` as natural and shown width, ``boxes`` of the
        finding and its limits, and the luminance of the ``ground``.
    """
    frames = "".join(_frame(page, width, 900) for page, width in pages)
    text = f"<pre id=found></pre>{frames}<script>{_MEASURING}</script>"
    shown = _run(text, *([_DARK] if dark else []), "--virtual-time-budget=4000", "--dump-dom")
    found = re.search(r'<pre id="found">(.*?)</pre>', shown, flags=re.DOTALL)
    assert found is not None and found[1], "the browser measured nothing"
    result: list[dict[str, Any]] = json.loads(html.unescape(found[1]))
    return result


def take_picture(page: str, path: Path, width: int, height: int, *, dark: bool = False) -> None:
    """A picture of a page, as PNG. A window is never less than 500 wide, so it is cut after."""
    _shoot(_frame(page, width, height), path, width, height, *([_DARK] if dark else []))


def take_picture_of_site(address: str, path: Path, width: int, height: int) -> None:
    """The same for a page that a server of this machine has."""
    frame = f'<iframe style="border:0;width:{width}px;height:{height}px" src="{address}"></iframe>'
    _shoot(frame, path, width, height, "--virtual-time-budget=8000")


def widths(folder: Path, pages: list[str], width: int) -> dict[str, tuple[int, list[str]]]:
    """How far pages of a site reach when shown so wide, in pixels, and what reaches beyond.

    Elements that scroll by themselves, wide tables and code, keep their page from getting wider.
    """
    style = f"border:0;width:{width}px;height:900px"
    frames = "".join(f'<iframe style="{style}" src="{name}"></iframe>' for name in pages)
    (folder / "measured.html").write_text(
        f"<pre id=found></pre>{frames}<script>{_REACHING}</script>", encoding="utf-8"
    )
    with served(folder) as address:
        shown = _open(f"{address}/measured.html", "--virtual-time-budget=9000", "--dump-dom")
    (folder / "measured.html").unlink()
    found = re.search(r'<pre id="found">(.*?)</pre>', shown, flags=re.DOTALL)
    assert found is not None and found[1], "the browser measured nothing"
    return dict(zip(pages, map(tuple, json.loads(html.unescape(found[1]))), strict=True))


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """A server of a folder on this machine alone; gives its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def _shoot(frame: str, path: Path, width: int, height: int, *options: str) -> None:
    from PIL import Image

    size = f"--window-size={max(width, 500)},{height}"
    _run(f'<body style="margin:0">{frame}', *options, size, f"--screenshot={path.resolve()}")
    with Image.open(path) as image:
        small = (
            image.convert("RGB").crop((0, 0, width, height)).quantize(160, dither=Image.Dither.NONE)
        )
    small.save(path, optimize=True)


def print_pdf(page: str, path: Path) -> None:
    """The page as a reader would print it."""
    _run(page, _DARK, "--no-pdf-header-footer", f"--print-to-pdf={path.resolve()}")


def _frame(page: str, width: int, height: int) -> str:
    style = f"border:0;width:{width}px;height:{height}px"
    return f'<iframe style="{style}" srcdoc="{html.escape(page)}"></iframe>'


def _run(page: str, *options: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.html"
        file.write_text(page, encoding="utf-8")
        return _open(file.as_uri(), *options)


def _open(address: str, *options: str) -> str:
    assert BROWSER is not None
    with tempfile.TemporaryDirectory() as folder:
        own = f"--user-data-dir={folder}/profile"
        done = subprocess.run(
            [BROWSER, *_OPTIONS, own, *options, address],
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
