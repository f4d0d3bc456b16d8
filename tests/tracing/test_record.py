"""One recording: what is seen, and that nothing of the model is touched."""

from __future__ import annotations

import random
import threading

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passportize.tracing.trace import trace_model

pytestmark = pytest.mark.usefixtures("nothing_patched")


class Restless(nn.Module):
    """A forward that does everything to a module that a forward should not do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(4))
        self.plain = torch.zeros(2)
        self.cache: dict[str, Tensor] = {}
        self.history: list[Tensor] = []
        self.fail = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        self.steps += 1
        self.mean = 0.9 * self.mean + 0.1 * x.mean((0, 2, 3))
        self.plain.add_(1.0)
        self.cache["last"] = x
        self.history.append(x)
        self.extra = x
        random.random()
        numpy.random.rand()
        x = x + torch.rand(1) + torch.rand_like(x) + torch.randn(x.shape, device=x.device)
        x = F.dropout(x, 0.5, self.training)
        self.train()
        if self.fail:
            raise ValueError("on purpose")
        return x


def snapshot(model: nn.Module) -> list[object]:
    found: list[object] = [random.getstate(), torch.get_rng_state().tolist()]
    found.append(str(numpy.random.get_state()))
    for module in model.modules():
        found.append([(key, id(value)) for key, value in vars(module).items()])
        tables = (module._parameters, module._buffers, module._modules)
        found.append([[(key, id(value)) for key, value in table.items()] for table in tables])
    found += [tensor.tolist() for tensor in (*model.parameters(), *model.buffers())]
    found += [(tensor.requires_grad, tensor.grad) for tensor in model.parameters()]
    return found


@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("training", [False, True, None])
def test_the_model_is_left_alone(training: bool | None, fail: bool) -> None:
    model = Restless()
    model.fail = fail
    model.norm.eval()
    model.norm.weight.requires_grad_(False)
    calls: list[int] = []
    model.norm.register_forward_hook(lambda *_: calls.append(1))
    before = snapshot(model)
    x = torch.randn(2, 3, 8, 8)
    given = x.clone()
    state = torch.get_rng_state()
    before[1] = state.tolist()
    trace = trace_model(model, x, norms={"norm"}, training=training)
    assert snapshot(model) == before
    assert model.plain.tolist() == [0.0, 0.0] and not model.cache and not model.history
    assert torch.equal(x, given)
    assert fail or not calls  # a second try runs hooks, in case the model needs them
    assert trace.complete != fail
    assert "norm" in trace.called
    assert ("ValueError: on purpose" in trace.reason) == fail


def test_hooks_run_only_where_the_model_needs_them() -> None:
    class Collector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
            self.found: list[Tensor] = []
            self.body[0].register_forward_hook(lambda m, i, o: self.found.append(o))

        def forward(self, x: Tensor) -> Tensor:
            self.body(x)
            return self.found.pop()

    model = Collector()
    trace = trace_model(model, torch.zeros(2, 4), norms={"body.1"})
    assert trace.complete, trace.reason
    assert not model.found


def test_other_threads_see_the_real_model() -> None:
    started, release = threading.Event(), threading.Event()
    seen: list[bool] = []

    class Waiting(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            started.set()
            release.wait(10)
            return super().forward(x)

    other = nn.Linear(2, 2)

    def work() -> None:
        started.wait(10)
        seen.append(other(torch.zeros(1, 2)).is_meta or other.weight.is_meta)
        seen.append(model.weight.is_meta)
        release.set()

    model = Waiting(2, 2)
    thread = threading.Thread(target=work)
    thread.start()
    assert trace_model(model, torch.zeros(1, 2)).complete
    thread.join()
    assert seen == [False, False]


def test_threads_may_read_models_at_once() -> None:
    def read() -> None:
        for _ in range(10):
            model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
            complete.append(trace_model(model, torch.zeros(2, 4), norms={"1"}).complete)

    complete: list[bool] = []
    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert complete == [True] * 40
