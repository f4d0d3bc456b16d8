"""Fixtures that several rooms use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from passportize.layers import registry

pytest.register_assert_rewrite("tests.support")


@pytest.fixture
def nothing_patched() -> Iterator[None]:
    """Reading a model replaces two methods of every module for a while; never for longer."""
    assert nn.Module.__call__.__name__ != "patched_call"
    yield
    assert nn.Module.__call__.__name__ != "patched_call"
    assert nn.Module.__getattr__.__name__ == "__getattr__"


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """What torch.compile made in other tests counts neither here nor later."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def own_adapters() -> Iterator[None]:
    """Adapters that a test registers for norms of its own are gone after it."""
    yield
    for norm in [norm for norm in registry._ADAPTERS if norm.__module__.startswith("tests.")]:
        del registry._ADAPTERS[norm]
