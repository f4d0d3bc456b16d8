"""The examples in docstrings run and give what they show."""

from __future__ import annotations

import doctest
import importlib

import pytest

from tests.support import ROOT

# Only what holds an example is imported: some modules want an extra, or take seconds to load.
FILES = [*(ROOT / "passportize").rglob("*.py"), *(ROOT / "passportize" / "adapters").glob("*.py")]
MODULES = sorted(
    {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in FILES
        if ">>> " in path.read_text(encoding="utf-8")
    }
)


def test_there_are_examples():
    assert {"passportize", "passportize.adapters.layer_norm"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted and not found.failed


def test_none_is_skipped():
    assert not [path for path in FILES if "doctest: +SKIP" in path.read_text(encoding="utf-8")]
