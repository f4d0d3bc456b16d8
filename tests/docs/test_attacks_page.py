"""A stranger adds an attack and a scheme by the page alone, in under 60 lines each."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from passportize.attacks import attack_names, find_attack
from passportize.attacks.attack import ATTACKS
from passportize.schemes import Release, scheme_names
from passportize.schemes.registry import SCHEMES
from tests.support import ROOT
from tests.support.bench import OWNER, BenchNet, batches, trained

PAGE = (ROOT / "docs" / "attacks.md").read_text(encoding="utf-8")


def test_the_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    use, attack, run_attack, scheme, run_scheme = blocks
    assert all(len(block.splitlines()) < 60 for block in blocks)

    def protect_and_train(found: Any) -> Release:
        return trained(found.protect(BenchNet(), OWNER), epochs=2)

    torch.manual_seed(0)
    names: dict[str, Any] = {
        "torch": torch,
        "model": BenchNet(),
        "train_data": batches("train"),
        "test_data": batches("test"),
        "protect_and_train": protect_and_train,
    }
    try:
        exec(use, names)
        assert names["rating"].owner.accepted and not names["rating"].succeeded
        for block in (attack, run_attack, scheme, run_scheme):
            exec(block, names)
        assert "shrink-to-mean" in attack_names("removal") and "signs" in scheme_names()
        release = names["release"]
        assert release.scheme.name == "signs" and release.verify(release.model).accepted
    finally:
        ATTACKS.remove("shrink-to-mean")
        SCHEMES.remove("signs")
    lines = capsys.readouterr().out.splitlines()
    assert float(lines[1]) == 1.0  # bits after the stranger's attack
    assert lines[2] == "True"  # the stranger's scheme falls to the closed form


def test_the_page_names_every_attack_and_scheme() -> None:
    for name in attack_names():
        assert f"`{name}`" in PAGE, find_attack(name)
    for name in scheme_names():
        assert f"`{name}`" in PAGE
