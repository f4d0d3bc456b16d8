"""Stand-ins without data: the real model is never computed with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from passportize.tracing.trace import trace_model
from tests.support.traced import norm_names

pytestmark = pytest.mark.usefixtures("nothing_patched")


class NoRealWork(TorchDispatchMode):
    """Fails when an operator gets a real floating-point tensor."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        for value in tree_leaves((args, kwargs or {})):
            if isinstance(value, Tensor) and value.is_floating_point() and not value.is_meta:
                raise AssertionError(f"{func} ran on real data")
        return func(*args, **(kwargs or {}))


def test_the_real_model_is_never_computed_with() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    model = nn.Sequential(nn.Linear(8, 16), nn.TransformerEncoder(layer, 2, nn.LayerNorm(16)))
    with NoRealWork():
        trace = trace_model(model, torch.empty(2, 5, 8, device="meta"), norms=norm_names(model))
    assert trace.complete
    assert norm_names(model) <= trace.called


def test_lazy_modules_stay_lazy() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.LayerNorm(4))
    trace = trace_model(model, torch.zeros(2, 3), norms={"1"})
    assert not trace.complete
    assert nn.parameter.is_lazy(model[0].weight)
