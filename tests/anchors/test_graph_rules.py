"""Which linear map of a recorded graph a norm is bound to."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passportize.anchors import graph_rules as anchor_rules
from passportize.anchors.search import find_anchors
from tests.support.anchor_models import (
    Attention,
    Built,
    Case,
    assert_bound,
    brief,
    check_rows,
    conv,
    search,
)

CASES: list[Case] = [
    (
        "direct",
        lambda: Built(lambda m, x: m.norm(m.a(x)), a=conv(3, 8), norm=nn.BatchNorm2d(8)),
        (2, 3, 8, 8),
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
]


@pytest.mark.parametrize("case", CASES, ids=itemgetter(0))
def test_rules(case: Case) -> None:
    assert_bound(*case)


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
