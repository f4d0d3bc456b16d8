"""The code in README and quickstart runs as it stands."""

from __future__ import annotations

import re

import pytest
import torch

import passportize as pp
from tests.support import ROOT


def blocks(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def test_readme(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first, second = blocks("README.md")
    generator = torch.Generator().manual_seed(0)
    loader = [(torch.randn(4, 3, 32, 32, generator=generator), torch.arange(4)) for _ in range(2)]
    names: dict = {"train_loader": loader, "test_loader": loader}
    exec(first, names)
    assert not any(isinstance(module, pp.PassportLayer) for module in names["model"].modules())
    names["suspect"] = names["model"]
    exec(second, names)
    printed = capsys.readouterr().out
    assert "verdict:" in printed and names["claim"].digest() in printed


@pytest.mark.slow
def test_quickstart(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    torch.manual_seed(0)
    for block in blocks("docs/quickstart.md"):
        exec(block, names)
    verdict = names["verdict"]
    assert verdict.accepted and verdict.message.owner == "Acme Vision"
    assert verdict.public_accuracy > 80 and verdict.private_accuracy > 70
    assert "780 bits" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_graphs():
    names: dict = {}
    torch.manual_seed(0)
    for block in blocks("docs/graphs.md"):
        exec(block, names)
        loss = names.get("loss")
        if loss is not None:
            assert bool(loss.total.isfinite()) and float(loss.sign.detach()) >= 0
            assert all(layer.passport.site.bits for layer in _layers(names["model"]))


def _layers(model: torch.nn.Module) -> list[pp.PassportLayer]:
    return [module for module in model.modules() if isinstance(module, pp.PassportLayer)]
