"""The response and the sign loss, against numpy and against their own promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from passportize.signature.response import (
    normalised_responses,
    raw_responses,
    raw_sign_penalty,
    sign_penalty,
)
from passportize.signature.vectors import WINDOW, Vectors, companion


def vectors(fan_in: int, seed: int = 0, offset: int = 0) -> Vectors:
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (fan_in, 2), generator=generator).float() * 2 - 1
    second = companion(signs[:, 0], torch.rand(fan_in, generator=generator))
    return Vectors(torch.stack([signs[:, 0], second, signs[:, 1]], dim=-1), offset)


def rows(channels: int, fan_in: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + 1)
    return torch.randn(channels, fan_in, generator=generator, dtype=torch.float64).to(dtype)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(8, 300), st.integers(0, 1000))
def test_normalised_response_is_what_numpy_computes(channels, fan_in, seed):
    weight, side = rows(channels, fan_in, seed), vectors(fan_in, seed)
    got = normalised_responses([weight], [side])
    w, s = weight.numpy(), side.values.double().numpy()
    length = np.sqrt((w**2).sum(1))
    gauge = w @ s[:, 0] / length
    sign = np.where(gauge < 0, -1.0, 1.0)
    np.testing.assert_allclose(got.gauge, gauge, atol=1e-12)
    np.testing.assert_allclose(got.gamma, sign * (w @ s[:, 1]) / length, atol=1e-12)
    np.testing.assert_allclose(got.beta, w @ s[:, 2] / length, atol=1e-12)
    np.testing.assert_allclose(got.length, sign * length, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(8, 200), st.integers(0, 1000))
def test_flips_and_rescaling_leave_the_bit_and_turn_gauge_beta_and_length(fan_in, seed):
    weight, side = rows(16, fan_in, seed), vectors(fan_in, seed)
    factor = torch.randn(16, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    plain = normalised_responses([weight], [side])
    moved = normalised_responses([weight * factor], [side])
    sign = factor.sign().squeeze(1)
    torch.testing.assert_close(moved.gamma, plain.gamma)
    torch.testing.assert_close(moved.gauge, plain.gauge * sign)
    torch.testing.assert_close(moved.beta, plain.beta * sign)
    torch.testing.assert_close(moved.length, plain.length * factor.squeeze(1))


@pytest.mark.parametrize("fan_in", [8, 9, 27, 64, 255, 256])
def test_companion_changes_half_of_the_signs(fan_in):
    values = vectors(fan_in).values
    assert set(values.unique().tolist()) <= {-1.0, 1.0}
    assert abs(float(values[:, 0] @ values[:, 1])) == fan_in % 2


def test_only_the_window_answers():
    weight = rows(4, 1000)
    side = vectors(WINDOW, offset=300)
    plain = normalised_responses([weight], [side])
    outside = weight.clone()
    outside[:, :300] = 7
    outside[:, 300 + WINDOW :] = -7
    for before, after in zip(plain, normalised_responses([outside], [side]), strict=True):
        assert torch.equal(before, after)


def test_parts_answer_one_after_the_other():
    first, second = rows(3, 20), rows(5, 40, seed=5)
    sides = [vectors(20), vectors(40, seed=9)]
    whole = normalised_responses([first, second], sides)
    for part, piece in zip(whole, normalised_responses([second], sides[1:]), strict=True):
        assert torch.equal(part[3:], piece)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_weights_are_read_in_float32(dtype):
    weight, side = rows(8, 64, dtype=dtype), vectors(64)
    got = normalised_responses([weight], [side])
    assert got.gamma.dtype == torch.float32
    exact = normalised_responses([weight.double()], [side])
    torch.testing.assert_close(got.gamma.double(), exact.gamma, atol=1e-5, rtol=0)


def test_a_pruned_row_answers_zero():
    weight = rows(3, 16)
    weight[1] = 0
    weight.requires_grad_()
    got = normalised_responses([weight], [vectors(16)])
    assert float(got.gamma[1].detach()) == 0
    assert torch.isfinite(torch.stack(list(got)).detach()).all()
    sum(part.sum() for part in got).backward()
    assert torch.equal(weight.grad[1], torch.zeros(16))  # not 1e12: the row would be lost
    assert 0 < float(weight.grad[0].detach().abs().max()) < 100


@pytest.mark.parametrize("fan_in", [64, 256])
def test_strangers_see_standard_normal_responses_and_fair_bits(fan_in):
    got = normalised_responses([rows(20000, fan_in)], [vectors(fan_in)])
    for values in (got.gamma, got.gauge, got.beta):
        assert stats.kstest(values.numpy(), "norm").pvalue > 1e-3
    heads = int((got.gamma >= 0).sum())
    assert stats.binomtest(heads, 20000).pvalue > 1e-3


def test_raw_response_of_groups_uses_each_groups_own_patch():
    weight = rows(6, 10)
    patches = torch.randn(3, 10, 2, dtype=torch.float64)
    got = raw_responses([weight], [Vectors(patches)])
    for channel in range(6):
        expected = weight[channel] @ patches[channel // 2]
        torch.testing.assert_close(got.gamma[channel], expected[0])
        torch.testing.assert_close(got.beta[channel], expected[1])


def test_published_penalty():
    weight, bits = rows(5, 12), torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0], dtype=torch.float64)
    responses = raw_responses([weight], [Vectors(torch.randn(12, 2, dtype=torch.float64))])
    expected = sum(max(0.0, 0.1 - float(b * u)) for b, u in zip(bits, responses.gamma, strict=True))
    assert math.isclose(float(raw_sign_penalty(responses, bits, 0.1)), expected, rel_tol=1e-12)


def penalty(weight: torch.Tensor, side: Vectors, bits: torch.Tensor, margin: float = 2.0):
    responses = normalised_responses([weight], [side])
    return sign_penalty(responses, bits, margin, [(len(weight), weight.shape[1])])


def test_gradient_descent_on_the_penalty_writes_every_bit():
    weight, side = rows(64, 48).requires_grad_(), vectors(48)
    bits = torch.randint(0, 2, (64,)).double() * 2 - 1
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
                penalty(weight, vectors(fan_in), torch.ones(32, dtype=torch.float64)), weight
            )
            relative = gradient.norm(dim=1) / weight.detach().norm(dim=1)
            assert float(relative.max()) < 1.5
            assert float(relative.mean()) > 0.5


def test_penalty_of_parts_is_the_sum():
    first, second = rows(3, 20), rows(5, 40, seed=5)
    sides, bits = [vectors(20), vectors(40, seed=9)], torch.ones(8, dtype=torch.float64)
    whole = sign_penalty(
        normalised_responses([first, second], sides), bits, 2.0, [(3, 20), (5, 40)]
    )
    pieces = penalty(first, sides[0], bits[:3]) + penalty(second, sides[1], bits[3:])
    torch.testing.assert_close(whole, pieces)


def test_gradients_of_first_and_second_order_are_exact():
    weight, side = rows(4, 9).requires_grad_(), vectors(5, offset=2)

    def everything(part: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(normalised_responses([part], [side]))

    assert torch.autograd.gradcheck(everything, weight)
    assert torch.autograd.gradgradcheck(everything, weight)
    assert torch.autograd.gradcheck(lambda part: everything(part)[3], weight)
