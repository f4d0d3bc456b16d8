"""Anchors from graphs without shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from passportize.anchors.search import AnchorSearch
from passportize.anchors.shapeless_rules import WidthRules
from passportize.anchors.weight_table import WeightTable
from passportize.tracing.symbolic import trace_leaves
from passportize.tracing.trace import leaf_kinds
from tests.support.anchor_models import Built, brief, conv, norm_widths

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
