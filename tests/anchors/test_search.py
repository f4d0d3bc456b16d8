"""Which weight a norm is bound to, and which of its rows."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, weight_norm

from passportize.anchors import graph_rules as anchor_rules
from passportize.anchors.search import AnchorSearch, find_anchors
from passportize.anchors.shapeless_rules import WidthRules
from passportize.anchors.weight_table import WeightTable
from passportize.errors import (
    AnchorNotFound,
    ExampleInputFailed,
    ExampleInputRequired,
    UninitializedModule,
    UnknownSite,
)
from passportize.signature.rows import anchor_fan_in, anchor_rows
from passportize.signature.site import AnchorPart
from passportize.tracing.symbolic import trace_leaves
from passportize.tracing.trace import leaf_kinds

BATCH_NORMS = nn.modules.batchnorm._BatchNorm


def norm_widths(model: nn.Module) -> dict[str, tuple[int, ...]]:
    widths: dict[str, tuple[int, ...]] = {}
    for name, module in model.named_modules():
        if isinstance(module, BATCH_NORMS):
            widths[name] = (module.num_features,)
        elif isinstance(module, nn.GroupNorm):
            widths[name] = (module.num_channels,)
        elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            widths[name] = tuple(module.normalized_shape)
    return widths


class Built(nn.Module):
    """Named parts and a forward, so that a test shows the wiring in one place."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def search(model: nn.Module, *shape: int, **options: Any) -> AnchorSearch:
    return find_anchors(
        model, norm_widths(model), torch.empty(shape, device="meta") if shape else None, **options
    )


def brief(found: AnchorSearch, name: str = "norm") -> tuple[Any, ...]:
    """Rule and ``(weight, channels, start, repeats)`` of each part."""
    anchor = found.anchors[name]
    parts = [(p.weight, p.channels, p.start, p.repeats) for p in anchor.parts]
    return anchor.rule, *parts


def conv(i: int, o: int, k: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=k // 2, **options)


class Attention(nn.Module):
    """Fused qkv with norms on q and k, as timm writes it."""

    def __init__(self, dim: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = nn.LayerNorm(dim // heads)
        self.k_norm = nn.LayerNorm(dim // heads)
        self.norm = nn.LayerNorm(dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj(self.norm(x.transpose(1, 2).reshape(b, n, c)))


CASES: list[tuple[str, Callable[[], nn.Module], tuple[int, ...], tuple[Any, ...]]] = [
    (
        "direct",
        lambda: Built(lambda m, x: m.norm(m.a(x)), a=conv(3, 8), norm=nn.BatchNorm2d(8)),
        (2, 3, 8, 8),
        ("upstream", ("a.weight", 8, 0, 1)),
    ),
    (
        "activation, pooling and dropout",
        lambda: Built(
            lambda m, x: m.norm(F.dropout(F.max_pool2d(F.relu(m.a(x)), 2), 0.1).flatten(1)),
            a=conv(3, 8),
            norm=nn.BatchNorm1d(8),
        ),
        (2, 3, 2, 2),
        ("upstream", ("a.weight", 8, 0, 1)),
    ),
    (
        "the last branch of a residual sum",
        lambda: Built(
            lambda m, x: m.norm((y := m.a(x)) + m.c(F.relu(m.b(y)).permute(0, 1, 2, 3))),
            a=conv(3, 8),
            b=conv(8, 16),
            c=conv(16, 8),
            norm=nn.BatchNorm2d(8),
        ),
        (2, 3, 8, 8),
        ("upstream", ("c.weight", 8, 0, 1)),
    ),
    (
        "a gate is not the producer",
        lambda: Built(
            lambda m, x: m.norm((y := m.a(x)) * m.g(y.mean((2, 3), keepdim=True)).sigmoid()),
            a=conv(3, 8),
            g=conv(8, 8),
            norm=nn.BatchNorm2d(8),
        ),
        (2, 3, 8, 8),
        ("upstream", ("a.weight", 8, 0, 1)),
    ),
    (
        "the first half of a gated unit",
        lambda: Built(
            lambda m, x: m.norm((y := m.a(x).chunk(2, -1))[0] * F.silu(y[1])),
            a=nn.Linear(6, 16),
            norm=nn.LayerNorm(8),
        ),
        (2, 5, 6),
        ("upstream", ("a.weight", 8, 0, 1)),
    ),
    (
        "another norm between",
        lambda: Built(
            lambda m, x: m.norm(F.relu(m.first(m.a(x)))),
            a=nn.Linear(6, 8),
            first=nn.LayerNorm(8),
            norm=nn.LayerNorm(8),
        ),
        (2, 5, 6),
        ("upstream", ("a.weight", 8, 0, 1)),
    ),
    (
        "concatenation of channels",
        lambda: Built(
            lambda m, x: m.norm(
                torch.cat([a := m.a(x), F.relu(b := m.b(x)), torch.cat([a, b], 1)], 1)
            ),
            a=conv(3, 2),
            b=conv(3, 5),
            norm=nn.BatchNorm2d(14),
        ),
        (2, 3, 8, 8),
        (
            "concat",
            ("a.weight", 2, 0, 1),
            ("b.weight", 5, 0, 1),
            ("a.weight", 2, 0, 1),
            ("b.weight", 5, 0, 1),
        ),
    ),
    (
        "a cut through a concatenation",
        lambda: Built(
            lambda m, x: m.norm(torch.cat([m.a(x), m.b(x)], 1)[:, 3:7]),
            a=conv(3, 4),
            b=conv(3, 5),
            norm=nn.BatchNorm2d(4),
        ),
        (2, 3, 8, 8),
        ("concat", ("a.weight", 1, 3, 1), ("b.weight", 3, 0, 1)),
    ),
    (
        "a class token",
        lambda: Built(
            lambda m, x: m.norm(
                torch.cat([m.token.expand(len(x), -1, -1), m.a(x).flatten(2).transpose(1, 2)], 1)
            ),
            token=nn.Parameter(torch.zeros(1, 1, 8)),
            a=conv(3, 8, 1),
            norm=nn.LayerNorm(8),
        ),
        (2, 3, 4, 4),
        ("upstream", ("a.weight", 8, 0, 1)),
    ),
    (
        "channels last",
        lambda: Built(
            lambda m, x: m.norm(m.a(x).permute(0, 2, 3, 1)), a=conv(3, 8), norm=nn.LayerNorm(8)
        ),
        (2, 3, 6, 4),
        ("upstream", ("a.weight", 8, 0, 1)),
    ),
    (
        "windows",
        lambda: Built(
            lambda m, x: m.norm(
                m.a(x).view(2, 4, 2, 4, 2, 8).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 8)
            ),
            a=nn.Linear(3, 8),
            norm=nn.LayerNorm(8),
        ),
        (2, 8, 8, 3),
        ("upstream", ("a.weight", 8, 0, 1)),
    ),
    (
        "a dense layer on flattened tokens",
        lambda: Built(
            lambda m, x: m.norm(m.a(x).flatten(0, 1)).reshape(2, 5, 8),
            a=nn.Linear(6, 8),
            norm=nn.BatchNorm1d(8),
        ),
        (2, 5, 6),
        ("upstream", ("a.weight", 8, 0, 1)),
    ),
    (
        "depthwise",
        lambda: Built(
            lambda m, x: m.norm(m.b(m.a(x))),
            a=conv(3, 8),
            b=conv(8, 8, 3, groups=8),
            norm=nn.BatchNorm2d(8),
        ),
        (2, 3, 8, 8),
        ("upstream", ("b.weight", 8, 0, 1)),
    ),
    (
        "transposed",
        lambda: Built(
            lambda m, x: m.norm(m.a(x)),
            a=nn.ConvTranspose2d(4, 6, 2, 2, groups=2),
            norm=nn.BatchNorm2d(6),
        ),
        (2, 4, 8, 8),
        ("upstream", ("a.weight", 6, 0, 1)),
    ),
    (
        "sum of parallel groups of channels",
        lambda: Built(
            lambda m, x: m.norm(m.a(x).view(2, 2, 8, 4, 4).sum(1)),
            a=conv(3, 16),
            norm=nn.BatchNorm2d(8),
        ),
        (2, 3, 4, 4),
        ("upstream", ("a.weight", 8, 0, 2)),
    ),
    (
        "one of two maps that were laid side by side",
        lambda: Built(
            lambda m, x: m.norm(torch.stack([m.a(x), m.b(x)], 2).flatten(2)[..., 8:]),
            a=nn.Linear(6, 8),
            b=nn.Linear(6, 8),
            norm=nn.LayerNorm(8),
        ),
        (2, 5, 6),
        ("upstream", ("b.weight", 8, 0, 1)),
    ),
    (
        "an index is not a producer",
        lambda: Built(
            lambda m, x: m.norm(torch.gather(y := m.a(x), 1, m.b(x + y.mean()).argsort(1))),
            a=nn.Linear(6, 8),
            b=nn.Linear(6, 8),
            norm=nn.LayerNorm(8),
        ),
        (2, 5, 6),
        ("upstream", ("a.weight", 8, 0, 1)),
    ),
    (
        "downstream",
        lambda: Built(
            lambda m, x: m.a(F.relu(m.norm(x)).transpose(1, 2)),
            norm=nn.LayerNorm(6),
            a=nn.Conv1d(6, 4, 1),
        ),
        (2, 5, 6),
        ("downstream", ("a.weight", 6, 0, 1)),
    ),
    (
        "downstream through a concatenation",
        lambda: Built(
            lambda m, x: m.a(torch.cat([x[:, :2], m.norm(x)], 1)),
            norm=nn.BatchNorm2d(6),
            a=conv(8, 4),
        ),
        (2, 6, 5, 5),
        ("downstream", ("a.weight", 6, 2, 1)),
    ),
    (
        "downstream through heads laid side by side",
        lambda: Built(
            lambda m, x: m.a(m.norm(x @ x.mT @ x).transpose(1, 2).reshape(2, 5, 12)),
            norm=nn.LayerNorm(4),
            a=nn.Linear(12, 6),
        ),
        (2, 3, 5, 4),
        ("downstream", ("a.weight", 4, 0, 3)),
    ),
    (
        "functional linear on half a weight",
        lambda: Built(
            lambda m, x: m.norm(F.linear(x, m.weight[8:])),
            weight=nn.Parameter(torch.zeros(16, 6)),
            norm=nn.LayerNorm(8),
        ),
        (2, 5, 6),
        ("upstream", ("weight", 8, 8, 1)),
    ),
    (
        "product with a matrix of inputs by outputs",
        lambda: Built(
            lambda m, x: m.norm(x @ m.weight + m.bias),
            weight=nn.Parameter(torch.zeros(6, 8)),
            bias=nn.Parameter(torch.zeros(8)),
            norm=nn.LayerNorm(8),
        ),
        (2, 5, 6),
        ("upstream", ("weight", 8, 0, 1)),
    ),
    (
        "standardized weight",
        lambda: Built(
            lambda m, x: m.norm(
                F.conv2d(
                    x,
                    F.batch_norm(m.weight.reshape(1, 8, -1), None, None, training=True).reshape_as(
                        m.weight
                    )
                    * m.gain,
                )
            ),
            weight=nn.Parameter(torch.zeros(8, 3, 1, 1)),
            gain=nn.Parameter(torch.ones(8, 1, 1, 1)),
            norm=nn.BatchNorm2d(8),
        ),
        (2, 3, 8, 8),
        ("upstream", ("weight", 8, 0, 1)),
    ),
    (
        "gather, scale and scatter",
        lambda: Built(
            lambda m, x: m.norm(
                x.new_zeros(5, 8).index_add_(
                    0, torch.tensor([0, 1, 1, 4]), m.a(x)[torch.tensor([3, 1, 1, 0])] * 0.5
                )
            ),
            a=nn.Linear(6, 8),
            norm=nn.BatchNorm1d(8),
        ),
        (4, 6),
        ("upstream", ("a.weight", 8, 0, 1)),
    ),
    (
        "written into a buffer that starts empty",
        lambda: Built(_write_rows, a=nn.Linear(6, 8), norm=nn.LayerNorm(8)),
        (2, 6),
        ("upstream", ("a.weight", 8, 0, 1)),
    ),
    (
        "tied weights have their first name",
        lambda: _tied(),
        (2, 6),
        ("upstream", ("a.weight", 6, 0, 1)),
    ),
]


def _write_rows(model: Any, x: Tensor) -> Tensor:
    out = torch.zeros(2, 3, 8)
    for i in range(3):
        out[:, i] = model.a(x)
    result = model.norm(out)
    assert isinstance(result, Tensor)
    return result


def _tied() -> nn.Module:
    a, b = nn.Linear(6, 6), nn.Linear(6, 6)
    b.weight = a.weight
    return Built(lambda m, x: m.norm(m.b(x)), a=a, b=b, norm=nn.LayerNorm(6))


@pytest.mark.parametrize(("title", "make", "shape", "expected"), CASES, ids=[c[0] for c in CASES])
def test_rules(
    title: str,
    make: Callable[[], nn.Module],
    shape: tuple[int, ...],
    expected: tuple[Any, ...],
) -> None:
    model = make()
    found = search(model, *shape)
    assert found.method == "fx-meta"
    assert brief(found) == expected
    assert found.executed == set(norm_widths(model))
    assert {p.weight for p in found.anchors["norm"].parts} <= set(dict(model.named_parameters()))
    check_rows(model, torch.randn(shape), found)


def check_rows(model: nn.Module, x: Tensor, found: AnchorSearch, names: Sequence[str] = ()) -> None:
    """The row of a channel is what that channel of the norm's input depends on, and no other."""
    parameters, modules = dict(model.named_parameters()), dict(model.named_modules())
    inputs: dict[str, Tensor] = {}
    model = model.eval()
    for name in norm_widths(model):
        modules[name].register_forward_pre_hook(
            lambda _, args, name=name: inputs.update({name: args[0]})
        )
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model(x)
    for name in names or norm_widths(model):
        anchor = found.anchors.get(name)
        if anchor is None or anchor.parts[0].axis == "input":
            continue
        source, offset = inputs[name], 0
        channels = anchor.channels
        dims = (1, -1) if source.dim() == 4 else (-1, 1)
        dim = next(d for d in dims if source.shape[d] == channels)
        live = False
        for part in anchor.parts:
            weight = parameters[part.weight]
            for channel in {0, part.channels - 1}:
                values = source.select(dim, offset + channel)
                scale = torch.randn_like(values)
                (grad,) = torch.autograd.grad((values * scale).sum(), weight, retain_graph=True)
                size = anchor_rows(grad, part).norm(dim=1)
                live = live or bool(size[channel] > 0)
                if not {"norm", "mul"} & set(anchor.crossed) and len(anchor.parts) == 1:
                    size[channel] = 0
                    assert size.max() < 1e-6 * (1 + grad.abs().max())
            offset += part.channels
        assert live, name


def test_heads_that_share_a_norm() -> None:
    model = Attention()
    found = search(model, 2, 5, 12)
    assert brief(found, "q_norm") == ("upstream", ("qkv.weight", 4, 0, 3))
    assert brief(found, "k_norm") == ("upstream", ("qkv.weight", 4, 12, 3))
    # Attention makes new channels, so this one is bound to what reads it.
    assert brief(found) == ("downstream", ("proj.weight", 12, 0, 1))
    check_rows(model, torch.randn(2, 5, 12), found)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
def test_multihead_attention(batch_first: bool, norm_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=batch_first, norm_first=norm_first)
    found = search(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), 2, 5, 8)
    out, second = "layers.0.self_attn.out_proj.weight", "layers.0.linear2.weight"
    if norm_first:
        first = ("downstream", ("layers.0.self_attn.in_proj_weight", 8, 0, 1))
        assert brief(found, "layers.0.norm1") == first
        assert brief(found, "layers.0.norm2") == ("upstream", (out, 8, 0, 1))
        assert brief(found, "layers.1.norm1") == ("upstream", (second, 8, 0, 1))
    else:
        assert brief(found, "layers.0.norm1") == ("upstream", (out, 8, 0, 1))
        assert brief(found, "layers.0.norm2") == ("upstream", (second, 8, 0, 1))


def test_a_width_that_fits_nothing_has_no_anchor() -> None:
    model = Built(lambda m, x: m.norm(x) @ m.norm(x).mT, norm=nn.LayerNorm(6))
    found = search(model, 2, 5, 6)
    assert found.anchors == {} and found.executed == {"norm"}


def test_widths_are_tried_in_order() -> None:
    model = Built(lambda m, x: m.norm(m.a(x)), a=nn.Conv1d(3, 4, 1), norm=nn.LayerNorm([4, 5]))
    x = torch.empty(2, 3, 5, device="meta")
    found = find_anchors(model, {"norm": (5, 4)}, x)
    assert brief(found) == ("upstream", ("a.weight", 4, 0, 1))
    assert find_anchors(model, {"norm": (7,)}, x).anchors == {}


def test_norms_that_never_run_are_not_executed() -> None:
    model = Built(
        lambda m, x: m.aux(m.norm(m.a(x))) if m.training else m.norm(m.a(x)),
        a=nn.Linear(3, 4),
        norm=nn.LayerNorm(4),
        aux=nn.LayerNorm(4),
        never=nn.LayerNorm(4),
    )
    found = search(model, 2, 3)
    assert found.executed == {"norm", "aux"}
    assert set(found.anchors) == {"norm", "aux"}


def test_a_norm_whose_forward_is_called_directly() -> None:
    model = Built(lambda m, x: m.norm.forward(m.a(x)), a=nn.Linear(3, 4), norm=nn.LayerNorm(4))
    found = search(model, 2, 3)
    assert found.executed == {"norm"}
    assert brief(found) == ("upstream", ("a.weight", 4, 0, 1))


class NormedConv(nn.Conv2d):
    """A convolution with its norm inside."""

    def __init__(self, i: int, o: int, **options: Any) -> None:
        super().__init__(i, o, 1, **options)
        self.norm = nn.BatchNorm2d(o)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


@pytest.mark.parametrize("groups", [1, 2])
def test_a_norm_inside_a_convolution(groups: int) -> None:
    model = nn.Sequential(NormedConv(4, 8, groups=groups), NormedConv(8, 6, groups=groups))
    found = search(model, 2, 4, 5, 5)
    assert brief(found, "1.norm") == ("upstream", ("1.weight", 6, 0, 1))
    assert found.anchors["1.norm"].parts[0].groups == groups
    check_rows(model, torch.randn(2, 4, 5, 5), found)


def test_lazy_modules_are_named() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.LayerNorm(4))
    with pytest.raises(UninitializedModule, match=r"^0 is lazy and has not seen data"):
        find_anchors(model, {"1": (4,)}, torch.zeros(2, 3))
    assert nn.parameter.is_lazy(model[0].weight)


@pytest.mark.parametrize(
    ("wrap", "weight"),
    [
        (parametrizations.spectral_norm, "a.parametrizations.weight.original"),
        (parametrizations.weight_norm, "a.parametrizations.weight.original1"),
        (lambda m: weight_norm(m), "a.weight_v"),
    ],
    ids=["spectral", "weight_norm", "old weight_norm"],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_computed_weights(wrap: Callable[[nn.Module], nn.Module], weight: str) -> None:
    model = Built(lambda m, x: m.norm(m.a(x)), a=wrap(nn.Linear(6, 8)), norm=nn.LayerNorm(8))
    before = {key: value.clone() for key, value in model.train().state_dict().items()}
    found = search(model)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert brief(found) == ("upstream", (weight, 8, 0, 1))
    assert found.notes[1:] == [f"a.weight is computed from {weight}, which is bound in its place"]


def test_aliases_have_their_first_name() -> None:
    bn = nn.BatchNorm2d(8)
    model = Built(lambda m, x: m.seq(x), norm=bn, seq=nn.Sequential(conv(3, 8), bn, nn.LeakyReLU()))
    assert brief(search(model, 2, 3, 4, 4)) == ("upstream", ("seq.0.weight", 8, 0, 1))


def test_the_search_does_not_depend_on_names_sizes_or_mode() -> None:
    model = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8), nn.BatchNorm2d(8))
    first = search(model, 2, 3, 8, 8).anchors
    assert search(model.train(), 2, 3, 8, 8).anchors == first
    assert search(model.eval(), 5, 3, 12, 9).anchors == first
    assert search(copy.deepcopy(model).to("meta")).anchors == first


@pytest.mark.parametrize("bound", [False, True])
def test_the_work_grows_with_the_model_and_no_faster(
    bound: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no norm of a long residual stream finds a weight."""

    def forward(model: Any, x: Tensor) -> Tensor:
        for layer, norm in zip(model.layers, model.norms, strict=True):
            x = x + (layer(norm(x)) if bound else torch.tanh(norm(x)) * x.exp())
        return x

    counts = []
    for depth in (20, 80):
        steps: list[int] = []
        original = anchor_rules.step_back
        monkeypatch.setattr(
            anchor_rules, "step_back", lambda t, s=steps, f=original: (s.append(1), f(t))[1]
        )
        model = Built(
            forward,
            layers=nn.ModuleList(nn.Linear(6, 6) for _ in range(depth)),
            norms=nn.ModuleList(nn.LayerNorm(6) for _ in range(depth)),
        )
        assert len(search(model, 2, 6).anchors) == (depth if bound else 0)
        monkeypatch.undo()
        counts.append(len(steps))
    assert counts[1] <= 5 * counts[0]


# --- models that fx can't read --------------------------------------------------------------


class Conditional(nn.Module):
    """Asks for the value of an activation between the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 6)
        self.last = nn.Linear(6, 4)
        self.norm = nn.LayerNorm(4)
        self.tail = nn.BatchNorm1d(12)
        self.spare = nn.BatchNorm1d(12)
        self.register_buffer("count", torch.zeros(()))
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = F.elu(self.first(x))
        self.count += 1
        if float(x.sum()) > 1e9:
            raise ValueError("too large")
        self.kept = x = x + torch.rand(1)
        y = self.norm(self.last(x) + x[:, :4])
        return self.tail(torch.cat([y, self.last(x), F.relu(self.last(x * 2))], 1))


def test_the_autograd_graph_answers_where_fx_can_not() -> None:
    model = Conditional()
    model.first.weight.requires_grad_(False)
    model.norm.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = torch.randn(3, 8)
    random_state, flags = torch.get_rng_state(), [m.training for m in model.modules()]
    found = find_anchors(model, norm_widths(model), x)
    assert found.method == "autograd"
    assert found.executed == {"norm", "tail"}
    assert brief(found) == ("autograd", ("last.weight", 4, 0, 1))
    assert brief(found, "tail") == ("autograd", *[("last.weight", 4, 0, 1)] * 3)
    assert "the autograd graph of one forward pass was used" in found.notes[0]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(random_state, torch.get_rng_state())
    assert flags == [m.training for m in model.modules()]
    assert model.kept is None and not model.first.weight.requires_grad
    assert model.last.weight.requires_grad and model.last.weight.grad is None
    copy.deepcopy(model)


def test_without_data_conditions_are_guessed() -> None:
    model = Conditional()
    found = search(model)
    assert found.method == "fx-meta" and found.executed is None
    assert brief(found) == ("upstream", ("last.weight", 4, 0, 1))
    assert brief(found, "tail")[0] == "concat"
    # Nothing shows that this one never runs, so it is bound, and said to be a guess.
    assert any(note.startswith("spare: bound to") for note in found.notes) or (
        "spare" not in found.anchors
    )


class Opaque(nn.Module):
    """Leaves torch between two layers, so that only the order of registration is left."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 6)
        self.middle = nn.LayerNorm(6)
        self.last = nn.Linear(6, 4)
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.from_numpy(self.first(x).detach().numpy())
        return self.norm(self.last(self.middle(x)))


def test_registration_order_is_never_silent() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), Opaque())
    found = search(model)
    assert found.anchors["1"].rule == "upstream"
    assert brief(found, "2.middle") == ("order", ("2.first.weight", 6, 0, 1))
    assert brief(found, "2.norm") == ("order", ("2.last.weight", 4, 0, 1))
    said = [note for note in found.notes if "by registration order" in note]
    assert [note.partition(":")[0] for note in said] == ["2.middle", "2.norm"]


def test_an_input_that_fails() -> None:
    model = nn.Sequential(Conditional())
    with pytest.raises(ExampleInputFailed, match=r"its module '0\.first' raised RuntimeError"):
        find_anchors(model, norm_widths(model), torch.randn(3, 7))
    with pytest.raises(ExampleInputFailed, match="too large"):
        find_anchors(model, norm_widths(model), torch.full((3, 8), 1e12))


def test_no_input_where_one_is_needed() -> None:
    class Needs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList([nn.LayerNorm(4)])

        def forward(self, data: Any) -> Tensor:
            return self.norms[0](torch.from_numpy(data["points"].numpy()))

    model = Needs()
    with pytest.raises(ExampleInputRequired, match="Pass example_inputs="):
        find_anchors(model, norm_widths(model))
    data = {"points": torch.randn(2, 4)}
    assert find_anchors(model, norm_widths(model), (data,)).executed == {"norms.0"}


def test_both_readings_agree_or_a_note_says_so() -> None:
    agreeing = Attention()
    found = find_anchors(agreeing, {"norm": (12,)}, torch.randn(2, 5, 12))
    assert found.method == "fx-meta" and found.notes == []
    # A gate over all positions misleads autograd, which does not know shapes.
    model = Built(
        lambda m, x: m.norm((y := m.a(x)) * m.g(y.mean((2, 3), keepdim=True))),
        a=conv(3, 8),
        g=conv(8, 8),
        norm=nn.BatchNorm2d(8),
    )
    found = find_anchors(model, norm_widths(model), torch.randn(2, 3, 4, 4))
    assert brief(found) == ("upstream", ("a.weight", 8, 0, 1))
    assert found.notes == [
        "norm: bound to a.weight by the fx graph; the autograd graph of a real forward pass says "
        "g.weight"
    ]


# --- graphs without shapes ------------------------------------------------------------------

WIDTH_CASES: list[tuple[str, Callable[[], nn.Module], tuple[Any, ...]]] = [
    (
        "through containers and activations",
        lambda: Built(
            lambda m, x: m.norm(m.body(x)),
            body=nn.Sequential(nn.Sequential(conv(3, 8)), nn.ReLU(), nn.Dropout()),
            norm=nn.BatchNorm2d(8),
        ),
        ("upstream", ("body.0.0.weight", 8, 0, 1)),
    ),
    (
        "the last branch of a residual sum",
        lambda: Built(
            lambda m, x: m.norm((y := m.a(x)) + m.b(F.relu(y))),
            a=conv(3, 8),
            b=conv(8, 8),
            norm=nn.BatchNorm2d(8),
        ),
        ("upstream", ("b.weight", 8, 0, 1)),
    ),
    (
        "concatenation of channels",
        lambda: Built(
            lambda m, x: m.norm(torch.cat([m.a(x), m.first(m.b(x))], 1)),
            a=conv(3, 2),
            b=conv(3, 5),
            first=nn.BatchNorm2d(5),
            norm=nn.BatchNorm2d(7),
        ),
        ("concat", ("a.weight", 2, 0, 1), ("b.weight", 5, 0, 1)),
    ),
    (
        "a class token",
        lambda: Built(
            lambda m, x: m.norm(torch.cat([m.token, m.a(x).flatten(2).transpose(1, 2)], 1)),
            token=nn.Parameter(torch.zeros(2, 1, 8)),
            a=conv(3, 8),
            norm=nn.LayerNorm(8),
        ),
        ("upstream", ("a.weight", 8, 0, 1)),
    ),
    (
        "downstream",
        lambda: Built(lambda m, x: m.b(F.relu(m.norm(x))), norm=nn.LayerNorm(6), b=nn.Linear(6, 4)),
        ("downstream", ("b.weight", 6, 0, 1)),
    ),
]


@pytest.mark.parametrize(
    ("title", "make", "expected"), WIDTH_CASES, ids=[c[0] for c in WIDTH_CASES]
)
def test_rules_without_shapes(
    title: str, make: Callable[[], nn.Module], expected: tuple[Any, ...]
) -> None:
    model = make()
    kinds = leaf_kinds(model, set(norm_widths(model)))
    recordings, complete = trace_leaves(model, lambda module: kinds.get(id(module)))
    assert complete
    rules = WidthRules(recordings[0].graph, WeightTable(model))
    anchor = rules.anchor("norm", model.get_submodule("norm"), norm_widths(model)["norm"])
    assert anchor is not None
    assert brief(AnchorSearch({"norm": anchor})) == expected


# --- anchors of the user -------------------------------------------------------------------


def test_the_user_decides() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 3))
    for weight, axis in (("2.weight", "output"), ("3.weight", "input")):
        anchor = search(model, 2, 4, user_anchors={"1": weight}).anchors["1"]
        assert anchor.rule == "user"
        assert anchor.parts == (AnchorPart(weight, 6, axis),)


@pytest.mark.parametrize(
    ("chosen", "error", "message"),
    [
        ({"1": "2.wieght"}, AnchorNotFound, r"no parameter of the model. Did you mean .*2\.weight"),
        ({"1": "3.weight"}, AnchorNotFound, r"shape \(3, 5\), so it neither makes nor reads 6"),
        ({"1": "0.bias"}, AnchorNotFound, r"1: its anchor '0.bias' has shape \(6,\)"),
        ({"11": "0.weight"}, UnknownSite, r"'11' is no normalization layer.* Did you mean 1\?"),
    ],
)
def test_wrong_choices(chosen: dict[str, str], error: type[Exception], message: str) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 5), nn.Linear(5, 3))
    with pytest.raises(error, match=message):
        search(model, 2, 4, user_anchors=chosen)


# --- rows ----------------------------------------------------------------------------------


@st.composite
def weights_and_parts(draw: st.DrawFn) -> tuple[Tensor, AnchorPart]:
    groups = draw(st.integers(1, 3))
    outputs, inputs = (groups * draw(st.integers(1, 4)) for _ in range(2))
    kernel = draw(st.lists(st.integers(1, 3), max_size=3))
    transposed = draw(st.booleans())
    front, back = (inputs, outputs) if transposed else (outputs, inputs)
    weight = torch.arange(front * (back // groups) * math.prod(kernel), dtype=torch.float64)
    axis = draw(st.sampled_from(["output", "input"]))
    rows = outputs if axis == "output" else inputs
    channels = draw(st.integers(1, rows))
    repeats = draw(st.integers(1, rows // channels))
    start = draw(st.integers(0, rows - channels * repeats))
    part = AnchorPart("w", channels, axis, start, repeats, groups, transposed)
    return weight.reshape(front, back // groups, *kernel).requires_grad_(), part


def rows_by_hand(weight: Tensor, part: AnchorPart) -> list[list[float]]:
    """Entry by entry, from what the convolution's documentation says."""
    groups = part.groups
    if part.transposed:
        inputs, outputs = weight.shape[0], weight.shape[1] * groups
    else:
        outputs, inputs = weight.shape[0], weight.shape[1] * groups

    def entry(o: int, i: int) -> list[float]:
        if o // (outputs // groups) != i // (inputs // groups):
            return []  # not connected
        if part.transposed:
            return weight[i, o % (outputs // groups)].flatten().tolist()
        return weight[o, i % (inputs // groups)].flatten().tolist()

    found = []
    for channel in range(part.channels):
        row: list[float] = []
        for repeat in range(part.repeats):
            index = part.start + repeat * part.channels + channel
            others = range(inputs if part.axis == "output" else outputs)
            pairs = ((index, j) if part.axis == "output" else (j, index) for j in others)
            row += itertools.chain.from_iterable(entry(o, i) for o, i in pairs)
        found.append(row)
    return found


@given(weights_and_parts())
@settings(deadline=None, max_examples=200)
def test_rows_against_loops(case: tuple[Tensor, AnchorPart]) -> None:
    weight, part = case
    rows = anchor_rows(weight, part)
    assert rows.tolist() == rows_by_hand(weight, part)
    assert rows.shape == (part.channels, anchor_fan_in(weight.shape, part))
    (grad,) = torch.autograd.grad(rows.sum(), weight)
    assert int(grad.sum()) == rows.numel()


def test_rows_are_views_of_plain_weights() -> None:
    weight = nn.Conv2d(6, 8, 3).weight
    rows = anchor_rows(weight, AnchorPart("w", 4, start=2))
    assert rows.data_ptr() == weight[2].data_ptr()


@pytest.mark.parametrize(
    ("shape", "part"),
    [
        ((8, 3), AnchorPart("w", 9)),
        ((8, 3), AnchorPart("w", 8, start=1)),
        ((8, 3), AnchorPart("w", 3, "input", repeats=2)),
        ((8,), AnchorPart("w", 8)),
        ((8, 3), AnchorPart("w", 8, groups=3)),
        ((8, 3), AnchorPart("w", 0)),
    ],
)
def test_rows_that_are_not_there(shape: tuple[int, ...], part: AnchorPart) -> None:
    with pytest.raises(AnchorNotFound, match=r"^w: "):
        anchor_rows(torch.zeros(shape), part)


# --- timm ----------------------------------------------------------------------------------

TIMM = [
    "resnet18", "test_vit", "test_vit4", "test_resnet", "test_convnext", "levit_128s",
    "densenet121", "lambda_resnet26t", "vit_tiny_patch16_224", "mobilenetv3_small_050",
    "ghostnet_050", "repvgg_a0", "resnest14d", "xcit_nano_12_p16_224", "edgenext_xx_small",
]  # fmt: skip


@pytest.mark.parametrize("name", TIMM)
def test_rows_of_timm_models_make_their_channels(name: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(name)
    widths = norm_widths(model)
    found = find_anchors(model, widths)
    assert found.method == "fx-meta" and set(found.anchors) == found.executed == set(widths)
    some = list(widths)[:: max(1, len(widths) // 6)]
    size = model.default_cfg["input_size"]
    check_rows(model, torch.rand(1, *size), found, some)
