"""The sign loss on responses, against numpy and against its own promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from passportize.signature.response import (
    normalised_responses,
    raw_responses,
    raw_sign_penalty,
    reach_of,
    sign_penalty,
)
from passportize.signature.vectors import WINDOW, RawVectors, SignVectors
from tests.support.rows import rows, sign_vectors, signs


def test_published_penalty():
    weight, bits = rows(5, 12), torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0], dtype=torch.float64)
    responses = raw_responses([weight], [RawVectors(torch.randn(12, 2, dtype=torch.float64))])
    expected = sum(max(0.0, 0.1 - float(b * u)) for b, u in zip(bits, responses.gamma, strict=True))
    assert math.isclose(float(raw_sign_penalty(responses, bits, 0.1)), expected, rel_tol=1e-12)


def penalty(weight: Tensor, side: SignVectors, bits: Tensor, margin: float = 2.0) -> Tensor:
    responses = normalised_responses([weight], [side])
    return sign_penalty(responses, bits, margin, [(len(weight), weight.shape[1])])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(1, WINDOW), st.floats(0, 4), st.integers(0, 1000))
def test_two_hinges_per_channel_are_what_numpy_computes(channels, fan_in, margin, seed):
    weight, side, bits = (
        rows(channels, fan_in, seed),
        sign_vectors(channels, fan_in, seed),
        signs(channels, seed),
    )
    w, codes, b = weight.numpy(), side.codes.numpy(), bits.numpy()
    s, t = (np.where(codes >> plane & 1, -1.0, 1.0) for plane in range(2))
    square = (w**2).sum(1)
    gauge, answer = ((w * v).sum(1) / np.sqrt(square) for v in (s, t))
    reach = min(margin, math.sqrt(fan_in) / 4)
    assert reach_of(margin, fan_in) == reach
    hinges = np.maximum(0, reach - np.abs(gauge))
    hinges += np.maximum(0, reach - b * np.where(gauge < 0, -1, 1) * answer)
    expected = float((square / math.sqrt(fan_in) * hinges).sum())
    assert float(penalty(weight, side, bits, margin)) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_gradient_descent_on_the_penalty_writes_every_bit():
    weight, side = rows(64, 48).requires_grad_(), sign_vectors(64, 48)
    bits = signs(64)
    for _ in range(300):
        (gradient,) = torch.autograd.grad(penalty(weight, side, bits), weight)
        with torch.no_grad():
            weight -= 0.02 * gradient
    responses = normalised_responses([weight.detach()], [side])
    reach = math.sqrt(48) / 4
    assert float((bits * responses.gamma).min()) > 0.95 * reach
    assert float(responses.gauge.abs().min()) > 0.95 * reach
    assert float(penalty(weight.detach(), side, bits)) < 0.5


def test_one_step_is_the_same_relative_change_for_every_row():
    """The gradient is as long as the row, whatever its scale and number of entries."""
    for fan_in in (64, 256):
        for scale in (0.01, 1.0, 30.0):
            weight = (rows(32, fan_in) * scale).requires_grad_()
            (gradient,) = torch.autograd.grad(
                penalty(weight, sign_vectors(32, fan_in), torch.ones(32, dtype=torch.float64)),
                weight,
            )
            relative = gradient.norm(dim=1) / weight.detach().norm(dim=1)
            assert float(relative.max()) < 1.5
            assert float(relative.mean()) > 0.5


def test_penalty_of_parts_is_the_sum():
    first, second = rows(3, 20), rows(5, 40, seed=5)
    sides, bits = [sign_vectors(3, 20), sign_vectors(5, 40, seed=9)], signs(8)
    whole = sign_penalty(
        normalised_responses([first, second], sides), bits, 2.0, [(3, 20), (5, 40)]
    )
    pieces = penalty(first, sides[0], bits[:3]) + penalty(second, sides[1], bits[3:])
    torch.testing.assert_close(whole, pieces)
