"""The rows of a weight that answer for channels."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from passportize.errors import AnchorNotFound
from passportize.signature.rows import anchor_fan_in, anchor_rows
from passportize.signature.site import AnchorPart


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
