"""What makes a site of the repository's own pages; mkdocs.yml names this file.

README, CONTRIBUTING and the results lie outside docs/ and are read where they lie, under the same
names, so a link that leads somewhere in the repository leads to the same place on the site. The
pages of the API are one for each room, and the tour is its notebook.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = ("*.md", "benchmarks/README.md", "benchmarks/results/*")
"""Pages and files outside docs/ that are part of the site."""

FENCED = re.compile(r"(^```.*?^```\s*?$)", flags=re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)#\s]+)")
NESTED = re.compile(r"^ {2}(?=(?:-|\d+\.) )", flags=re.MULTILINE)
"""An item of a list in a list; GitHub asks for two spaces in front of it, mkdocs for four."""


def rooms() -> list[str]:
    """Subpackages of passportize, and what the integrations consist of."""
    package = ROOT / "passportize"
    found = {path.parent for path in package.glob("*/__init__.py")}
    inner = package / "integrations"
    found |= {path.parent for path in inner.glob("*/__init__.py")}
    found |= {path.with_suffix("") for path in inner.glob("[a-z]*.py")}
    return sorted(".".join(path.relative_to(package).parts) for path in found)


def api_page(room: str) -> str:
    """Markdown of the page of a room: what it exports, or all its files where that is nothing."""
    folder = ROOT / "passportize" / room.replace(".", "/")
    text = f"# {room}\n\n::: passportize.{room}\n"
    if folder.is_dir() and "__all__" not in (folder / "__init__.py").read_text(encoding="utf-8"):
        for path in sorted(folder.glob("[a-z]*.py")):
            inner = f"{room}.{path.stem}"
            if inner not in rooms():
                text += f"\n## {path.stem}\n\n::: passportize.{inner}\n"
    return text


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the rooms below the API's place in the navigation, and the results below theirs."""
    results = sorted(path.name for path in (ROOT / "benchmarks" / "results").glob("*.md"))
    for section in config.nav or []:
        if "API" in section:
            section["API"] += [{room: f"api/{room}.md"} for room in rooms()]
        if "Results" in section:
            section["Results"] += [f"benchmarks/results/{name}" for name in results]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add pages from outside docs/, of the API, and the notebook as a page."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    for room in rooms():
        files.append(File.generated(config, f"api/{room}.md", content=api_page(room)))
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(notebook)
        name = notebook.src_uri.removesuffix(".ipynb")
        into = {"unique_key": name, "output_files_dir": f"{name}_files"}
        text, made = MarkdownExporter().from_filename(str(notebook.abs_src_path), resources=into)
        files.append(File.generated(config, f"{name}.md", content=text))
        for picture, content in made["outputs"].items():
            files.append(File.generated(config, picture, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Lead links of the repository to the places on the site."""
    here = page.file.src_uri
    outside = page.file.src_dir == str(ROOT)
    folder = posixpath.dirname(here if outside else f"docs/{here}")

    def lead(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[1]))
        if not (ROOT / target).exists():
            return match[1]
        place = re.sub(r"\.ipynb$", ".md", target.removeprefix("docs/"))
        return posixpath.relpath(place, posixpath.dirname(here) or ".")

    parts = FENCED.split(markdown)
    # Every other part is a block of code.
    parts[::2] = [LINK.sub(lead, NESTED.sub("    ", part)) for part in parts[::2]]
    return "".join(parts)
