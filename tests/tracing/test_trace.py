"""Reading the graph of a model: what is seen, and that nothing is touched."""

from __future__ import annotations

import random
import threading
import types
from collections.abc import Iterator

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from passportize.errors import InvalidArgument
from passportize.tracing.example_inputs import ExampleInputs
from passportize.tracing.trace import trace_model

NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


def norm_names(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, NORMS)}


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


class ShapeReader(nn.Module):
    """Branches on everything that a shape can tell."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv1d(3, 8, 1)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x: Tensor, scale: float | None = None, names: str = "a") -> Tensor:
        batch, _channels, points = list(x.shape)
        if x.is_cuda or len(x) != batch or x.ndim != 3 or x.dim() > 3:
            raise AssertionError
        if x.shape[1] > 3:
            x, _ = x.split([3, x.size(1) - 3], dim=1)
        index = torch.arange(points, device=x.device)
        assert int(index.max()) == points - 1
        eye = torch.eye(3, device=x.device).repeat(batch, 1, 1)
        x = torch.bmm(eye, x)[:, :, index]
        x = F.pad(x, (0, (4 - points % 4) % 4))
        x = self.norm(self.proj(x))
        x = x.to(torch.float64).to(self.proj.weight.dtype).cpu()
        out = torch.zeros(batch, 8)
        out[:, :] = x.amax(-1)
        if scale is not None:
            out = out * scale
        return out.view(int(x.size(0)), -1)


@pytest.mark.parametrize("width", [3, 6])
def test_sizes_are_concrete(width: int) -> None:
    trace = trace_model(ShapeReader(), torch.empty(2, width, 10, device="meta"), norms={"norm"})
    assert trace.complete, trace.reason
    assert trace.method == "fx-meta"
    last = list(trace.recordings[0].graph.nodes)[-1]
    assert last.meta["shape"] == (2, 8)


class Pooling(nn.Module):
    """Data-dependent sizes that come from the input alone."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(3, 6)
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor, batch: Tensor) -> Tensor:
        x = self.norm(self.lin(x))
        pooled = x.new_zeros(int(batch.max()) + 1, 6)
        pooled.index_add_(0, batch, x)
        return pooled[batch.unique()]


@pytest.mark.parametrize("as_keywords", [False, True])
def test_real_inputs_keep_their_values(as_keywords: bool) -> None:
    x, batch = torch.randn(5, 3), torch.tensor([0, 0, 1, 2, 2])
    inputs = {"x": x, "batch": batch} if as_keywords else (x, batch)
    trace = trace_model(Pooling(), inputs, norms={"norm"})
    assert trace.complete, trace.reason
    nodes = list(trace.recordings[0].graph.nodes)
    assert nodes[-1].meta["shape"] == (3, 6)


def test_a_function_may_run_the_model() -> None:
    def run(model: nn.Module) -> Tensor:
        result = model(torch.ones(4, 3), batch=torch.tensor([0, 1, 1, 1]))
        assert isinstance(result, Tensor)
        return result

    trace = trace_model(Pooling(), run, norms={"norm"})
    assert trace.complete, trace.reason
    assert trace.called == {"", "lin", "norm"}


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


class Numpy(nn.Module):
    """Leaves torch in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.norm = nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        return torch.from_numpy(x.detach().numpy() * 2)


def test_an_untraceable_module_becomes_a_leaf() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), Numpy(), nn.LayerNorm(16))
    trace = trace_model(model, norms=norm_names(model))
    assert trace.method == "fx-leaf"
    assert not trace.complete
    assert trace.reason.startswith("2 could not be read")
    targets = {str(n.target) for r in trace.recordings for n in r.graph.nodes}
    assert {"0", "1", "2", "3"} <= targets


def test_leaf_graphs_of_inner_modules_keep_full_names() -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.from_numpy(self.part(x).numpy())

    model = nn.Sequential(nn.Identity(), Several())
    trace = trace_model(model, norms=norm_names(model))
    targets = {str(n.target) for r in trace.recordings for n in r.graph.nodes}
    assert "1.part.1" in targets
    assert "1.part.1" in trace.called


def test_inputs_are_read_from_the_configuration() -> None:
    class Configured(nn.Sequential):
        default_cfg = {"input_size": (3, 16, 16)}  # noqa: RUF012

    model = Configured(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    trace = trace_model(model, norms={"1"})
    assert trace.recordings[0].graph.find_nodes(op="placeholder")[0].meta["shape"] == (2, 3, 16, 16)
    assert not trace.notes


@pytest.mark.parametrize("side", [20, (20, 16)])
def test_transformers_configurations_are_read(side: int | tuple[int, int]) -> None:
    class Sized(nn.Sequential):
        def forward(self, pixel_values: Tensor) -> Tensor:
            if pixel_values.shape[2] != 20:
                raise ValueError("another size")
            return super().forward(pixel_values)

    model = Sized(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    model.config = types.SimpleNamespace(image_size=side, num_channels=1)
    trace = trace_model(model, norms={"1"})
    assert trace.complete and not trace.notes


def test_a_configuration_of_other_channels_is_not_believed() -> None:
    class Configured(nn.Sequential):
        pretrained_cfg = {"input_size": (3, 16, 20)}  # noqa: RUF012

    trace = trace_model(Configured(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)), norms={"1"})
    assert trace.complete
    assert trace.notes == ["read with a guessed input of shape (2, 1, 16, 20)"]


def test_token_models_are_given_tokens() -> None:
    model = nn.Sequential(nn.Embedding(10, 8), nn.LayerNorm(8), nn.Linear(8, 4))
    assert trace_model(model, norms={"1"}).complete


def test_a_guessed_size_is_said() -> None:
    trace = trace_model(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(3600, 2)))
    assert trace.complete
    assert trace.notes == ["read with a guessed input of shape (2, 3, 32, 32)"]


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


def test_lazy_modules_stay_lazy() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.LayerNorm(4))
    trace = trace_model(model, torch.zeros(2, 3), norms={"1"})
    assert not trace.complete
    assert nn.parameter.is_lazy(model[0].weight)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("options", [{}, {"batch_first": True, "bidirectional": True}])
def test_recurrent_layers_have_the_shapes_of_torch(
    kind: type[nn.RNNBase], options: dict[str, bool]
) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = kind(3, 5, 2, **options)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            out, state = self.rnn(x)
            return out, *(state if isinstance(state, tuple) else (state,))

    model, x = Model(), torch.zeros(4, 6, 3)
    trace = trace_model(model, x)
    shapes = [n.meta["shape"] for n in trace.recordings[0].graph.nodes if "shape" in n.meta]
    for tensor in model(x):
        assert tuple(tensor.shape) in shapes


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


@pytest.fixture(autouse=True)
def _defaults() -> Iterator[None]:
    assert nn.Module.__call__.__name__ != "patched_call"
    yield
    assert nn.Module.__call__.__name__ != "patched_call"
    assert nn.Module.__getattr__.__name__ == "__getattr__"


@pytest.mark.parametrize(
    ("value", "message"),
    [((2, 3, 8), r"Pass torch\.zeros\(\(2, 3, 8\)\) instead"), ({1: torch.zeros(1)}, "a tuple")],
)
def test_what_is_no_input(value: object, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        trace_model(nn.Linear(3, 3), value)


def test_example_inputs_are_copied() -> None:
    x = torch.zeros(2)
    inputs = ExampleInputs.of({"x": x, "more": [x, (1, "a")]})
    copied = inputs.copy()
    copied.kwargs["x"].add_(1)
    assert x.tolist() == [0, 0]
    assert [name for name, _ in inputs.tensors()] == ["x", "more_0"]


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
