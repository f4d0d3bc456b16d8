"""Roles of Sphinx in docstrings, :func:`passportize.verify` say, as links of the site."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:func|class|meth|mod|data|attr|exc):`(~?)([\w.]+)`")


class Roles(griffe.Extension):
    """Turns every role into a link where the site has its target, and into code where not."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one docstring, before it is parsed."""
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(self._link, obj.docstring.value)

    @staticmethod
    def _link(match: re.Match[str]) -> str:
        short, target = match[1], match[2]
        shown = target.rpartition(".")[2] if short else target
        return f'<autoref optional identifier="{target}"><code>{shown}</code></autoref>'
