"""Which way a model is read, and what is said about it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from passportize.tracing.trace import trace_model
from tests.support.traced import NORMS, norm_names

pytestmark = pytest.mark.usefixtures("nothing_patched")


class Conditional(nn.Module):
    """Asks for the value of an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.norm = nn.LayerNorm(16)
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        if x.sum() > 0:
            x = x * 2
        return self.last(x)


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 8)
        self.bn = nn.BatchNorm1d(8)
        self.inner = Conditional()
        self.end = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.inner(self.bn(self.stem(x))))


def test_values_are_guessed_only_without_data() -> None:
    model = Outer()
    given = trace_model(model, torch.randn(3, 5), norms=norm_names(model))
    assert not given.complete
    assert given.reason.startswith("inner could not be read on shapes alone")
    assert given.called >= {"bn", "inner.norm"}
    guessed = trace_model(model, norms=norm_names(model))
    assert guessed.method == "fx-meta"
    assert not guessed.complete
    assert norm_names(model) <= guessed.called
    assert any("conditions on values were taken as false" in note for note in guessed.notes)


TIMM = [
    "resnet18", "mobilevit_xxs", "levit_128s", "hiera_tiny_224", "swin_tiny_patch4_window7_224",
    "test_vit", "test_convnext", "test_mambaout", "efficientvit_m0", "efficientvit_b0",
    "tiny_vit_5m_224", "crossvit_tiny_240", "maxvit_rmlp_pico_rw_256", "coat_lite_tiny",
    "vgg11_bn", "mvitv2_tiny", "nest_tiny", "bat_resnext26ts", "sequencer2d_s", "gcvit_xxtiny",
]  # fmt: skip


@pytest.mark.parametrize("name", TIMM)
def test_every_norm_of_timm_models_is_seen(name: str) -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        model = timm.create_model(name)

    def is_norm(module: nn.Module) -> bool:
        return isinstance(module, NORMS) or "RmsNorm" in type(module).__name__

    norms = {n for n, m in model.named_modules() if is_norm(m)}
    trace = trace_model(model, norms=norms)
    assert trace.complete, trace.reason
    assert norms <= trace.called
