"""Docstrings for the site: roles of Sphinx become links, and examples blocks of code."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:func|class|meth|mod|data|attr|exc):`(~?)([\w.]+)`")
EXAMPLE = re.compile(r"^( *)(>>> .*\n?(?:\1.*\S.*\n?)*)", flags=re.MULTILINE)
"""From a prompt to the next empty line."""


class ForTheSite(griffe.Extension):
    """Turns every role into a link where the site has its target, and into code where not."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one docstring, before it is parsed."""
        if obj.docstring is not None and "```" not in obj.docstring.value:
            text = ROLE.sub(self._link, obj.docstring.value)
            obj.docstring.value = EXAMPLE.sub(self._fence, text)

    def on_module(self, *, mod: griffe.Module, **_: Any) -> None:
        """The same for a module, which is no object to griffe."""
        self.on_object(obj=mod)

    @staticmethod
    def _link(match: re.Match[str]) -> str:
        short, target = match[1], match[2]
        shown = target.rpartition(".")[2] if short else target
        return f'<autoref optional identifier="{target}"><code>{shown}</code></autoref>'

    @staticmethod
    def _fence(match: re.Match[str]) -> str:
        indent, lines = match[1], match[2].rstrip("\n")
        return f"{indent}```pycon\n{indent}{lines}\n{indent}```\n"
