"""The response to a passport, against numpy and against its own promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from passportize.signature import response
from passportize.signature.response import normalised_responses, raw_responses
from passportize.signature.vectors import WINDOW, RawVectors, SignVectors
from tests.support.rows import rows, sign_vectors

# --- the normalised response ---------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(1, WINDOW), st.integers(0, 1000))
def test_normalised_response_is_what_numpy_computes(channels, fan_in, seed):
    weight, side = rows(channels, fan_in, seed), sign_vectors(channels, fan_in, seed)
    got = normalised_responses([weight], [side])
    w, codes = weight.numpy(), side.codes.numpy()
    s, t, r = (np.where(codes >> plane & 1, -1.0, 1.0) for plane in range(3))
    length = np.sqrt((w**2).sum(1))
    gauge = (w * s).sum(1) / length
    sign = np.where(gauge < 0, -1.0, 1.0)
    np.testing.assert_allclose(got.gauge, gauge, atol=1e-12)
    np.testing.assert_allclose(got.gamma, sign * (w * t).sum(1) / length, atol=1e-12)
    np.testing.assert_allclose(got.beta, (w * r).sum(1) / length, atol=1e-12)
    np.testing.assert_allclose(got.length, sign * length, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 200), st.integers(0, 1000))
def test_flips_and_rescaling_leave_the_bit_and_turn_gauge_beta_and_length(fan_in, seed):
    weight, side = rows(16, fan_in, seed), sign_vectors(16, fan_in, seed)
    factor = torch.randn(16, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    plain = normalised_responses([weight], [side])
    moved = normalised_responses([weight * factor], [side])
    sign = factor.sign().squeeze(1)
    clear = plain.gauge.abs() > 1e-9  # rows that are at right angles to s have no gauge
    torch.testing.assert_close(moved.gamma[clear], plain.gamma[clear])
    torch.testing.assert_close(moved.gauge, plain.gauge * sign)
    torch.testing.assert_close(moved.beta, plain.beta * sign)
    torch.testing.assert_close(moved.length[clear], (plain.length * factor.squeeze(1))[clear])


@pytest.mark.parametrize(
    ("dtype", "powers"),
    [
        (torch.float16, range(-24, 16)),
        (torch.bfloat16, range(-133, 128)),
        (torch.float32, range(-149, 128)),
        (torch.float64, range(-1074, 1024, 3)),
    ],
)
def test_powers_of_two_leave_every_response_as_it_is(dtype, powers):
    """Over the whole range of the type, subnormal numbers included where they survive."""
    generator = torch.Generator().manual_seed(0)
    # Few significant bits, so that rows survive far into the subnormal numbers.
    whole = torch.randint(-3, 4, (64, 48), generator=generator).double()
    whole = whole * 2.0 ** -torch.randint(0, 3, (64, 48), generator=generator)
    side = sign_vectors(64, 48)
    plain = normalised_responses([whole.to(dtype)], [side])
    survived = 0
    for power in powers:
        low = int(power < -1000) * 60  # 2.0**-1074 is exact, and so is a product in two steps
        scaled = (whole * 2.0 ** (power + low) * 2.0**-low).to(dtype)
        back = scaled.double() * 2.0 ** -(power + low) * 2.0**low
        alive = (back == whole).all(1)
        if not alive.any():
            continue
        survived += 1
        moved = normalised_responses([scaled[alive]], [SignVectors(side.codes[alive])])
        for name in ("gamma", "gauge", "beta"):
            assert torch.equal(getattr(moved, name), getattr(plain, name)[alive]), (name, power)
    # The highest powers overflow, of the lowest the smallest entries are lost.
    assert survived >= len(powers) - 4


def test_rows_as_large_and_small_as_floats_get_answer_like_others():
    unit, side = rows(200, 64, dtype=torch.float32), sign_vectors(200, 64)
    expected = normalised_responses([unit], [side])
    largest = torch.finfo(torch.float32).max
    for size in (largest / 6, 1e30, 1e-30, 1e-36):
        got = normalised_responses([unit * size], [side])
        torch.testing.assert_close(got.gamma, expected.gamma, atol=1e-4, rtol=1e-4)
    subnormal = normalised_responses([unit * 1e-40], [side])
    # Eighteen bits are left of a number.
    torch.testing.assert_close(subnormal.gamma, expected.gamma, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_rows_that_are_no_numbers_do_not_touch_others(value, dtype):
    weight, side = rows(5, 16, dtype=dtype), sign_vectors(5, 16)
    plain = normalised_responses([weight], [side])
    weight[1, 3] = value
    weight[2] = value
    got = normalised_responses([weight], [side])
    for before, after in zip(plain, got, strict=True):
        assert torch.equal(before[[0, 3, 4]], after[[0, 3, 4]])
    assert not bool(torch.isfinite(got.gamma[1:3]).any())
    raw = raw_responses([weight], [RawVectors(torch.ones(16, 2))])
    assert bool(torch.isfinite(raw.gamma[[0, 3, 4]]).all())


def test_only_the_window_answers():
    weight = rows(4, 1000)
    side = sign_vectors(4, WINDOW, offset=300)
    plain = normalised_responses([weight], [side])
    outside = weight.clone()
    outside[:, :300] = 7
    outside[:, 300 + WINDOW :] = -7
    for before, after in zip(plain, normalised_responses([outside], [side]), strict=True):
        assert torch.equal(before, after)
    cut = weight[:, side.window]
    for before, after in zip(plain, normalised_responses([cut], [side]), strict=True):
        assert torch.equal(before, after)


def test_parts_answer_one_after_the_other():
    first, second = rows(3, 20), rows(5, 40, seed=5)
    sides = [sign_vectors(3, 20), sign_vectors(5, 40, seed=9)]
    whole = normalised_responses([first, second], sides)
    pieces = [
        normalised_responses([part], [side])
        for part, side in zip((first, second), sides, strict=True)
    ]
    for part, one, two in zip(whole, *pieces, strict=True):
        assert torch.equal(part[:3], one) and torch.equal(part[3:], two)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_weights_are_read_in_float32(dtype):
    weight, side = rows(8, 64, dtype=dtype), sign_vectors(8, 64)
    got = normalised_responses([weight], [side])
    assert {part.dtype for part in got} == {torch.float32}
    exact = normalised_responses([weight.double()], [side])
    assert {part.dtype for part in exact} == {torch.float64}
    torch.testing.assert_close(got.gamma.double(), exact.gamma, atol=1e-5, rtol=0)


def test_a_pruned_row_answers_zero():
    weight = rows(3, 16)
    weight[1] = 0
    weight.requires_grad_()
    got = normalised_responses([weight], [sign_vectors(3, 16)])
    assert float(got.gamma[1].detach()) == 0
    assert torch.isfinite(torch.stack(list(got)).detach()).all()
    sum(part.sum() for part in got).backward()
    assert torch.equal(weight.grad[1], torch.zeros(16))  # not 1e12: the row would be lost
    assert 0 < float(weight.grad[0].detach().abs().max()) < 100


@pytest.mark.parametrize("fan_in", [64, 256])
def test_strangers_see_standard_normal_responses_and_fair_bits(fan_in):
    got = normalised_responses([rows(20000, fan_in)], [sign_vectors(20000, fan_in)])
    for values in (got.gamma, got.gauge, got.beta):
        assert stats.kstest(values.numpy(), "norm").pvalue > 1e-3
    heads = int((got.gamma >= 0).sum())
    assert stats.binomtest(heads, 20000).pvalue > 1e-3


@pytest.mark.parametrize("fan_in", [8, 28, 64])
@pytest.mark.parametrize("kind", ["equal", "constant", "sparse", "ternary", "correlated"])
def test_bits_are_fair_whatever_the_rows(kind, fan_in):
    """Vectors are drawn for each row, so no kind of weights favours responses of one sign.

    Responses of exactly 0 read as 1, so only others are counted. In rows of an odd number of
    entries ``s . t`` is 1, which favours one sign a little; coins make the bits fair there, too
    (``test_crafted_layouts.py``).
    """
    count = 20000
    weight = {
        "equal": rows(1, fan_in).expand(count, -1),
        "constant": torch.ones(count, fan_in, dtype=torch.float64),
        "sparse": rows(count, fan_in) * (rows(count, fan_in, 1) > 1),
        "ternary": rows(count, fan_in).round().clamp(-1, 1),
        "correlated": rows(count, fan_in) * 0.1 + rows(1, fan_in) + 0.5,
    }[kind]
    got = normalised_responses([weight], [sign_vectors(count, fan_in)])
    clear = got.gamma.abs() > 1e-9
    heads = int((got.gamma[clear] > 0).sum())
    if int(clear.sum()):
        assert stats.binomtest(heads, int(clear.sum())).pvalue > 1e-4


# --- the gradient --------------------------------------------------------------------------------


def everything(part: Tensor, side: SignVectors) -> tuple[Tensor, ...]:
    return tuple(normalised_responses([part], [side]))


@pytest.mark.parametrize(("fan_in", "entries", "offset"), [(9, 5, 2), (6, 6, 0)])
def test_gradients_of_first_and_second_order_are_exact(fan_in, entries, offset):
    weight, side = rows(4, fan_in).requires_grad_(), sign_vectors(4, entries, offset=offset)
    assert torch.autograd.gradcheck(lambda part: everything(part, side), weight)
    assert torch.autograd.gradgradcheck(lambda part: everything(part, side), weight)
    for index in range(4):
        assert torch.autograd.gradcheck(lambda part, i=index: everything(part, side)[i], weight)


def test_gradient_is_that_of_the_plain_formula():
    """A compiler sees the plain formula, everything else the one with two passes."""
    weight, side = rows(6, 40).requires_grad_(), sign_vectors(6, 40)
    factors = rows(6, 4, seed=3)

    def weighed(answer: Tensor, length: Tensor) -> Tensor:
        return (answer * factors[:, :3].t()).sum() + (length * factors[:, 3]).sum()

    gradients = [
        torch.autograd.grad(weighed(*function(weight, side.codes)), weight)[0]
        for function in (response._standardised, response._Standardised.apply)
    ]
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=1e-12)


# --- the raw response ----------------------------------------------------------------------------


def test_raw_response_is_a_product():
    weight, patch = rows(6, 10), rows(10, 2, seed=2)
    got = raw_responses([weight], [RawVectors(patch)])
    torch.testing.assert_close(got.gamma, weight @ patch[:, 0])
    torch.testing.assert_close(got.beta, weight @ patch[:, 1])
    torch.testing.assert_close(got.length, weight.norm(dim=1))
    assert torch.equal(got.gauge, torch.zeros(6, dtype=torch.float64))


def test_raw_response_of_groups_uses_each_groups_own_patch():
    weight = rows(6, 10)
    patches = torch.randn(3, 10, 2, dtype=torch.float64)
    got = raw_responses([weight], [RawVectors(patches)])
    for channel in range(6):
        expected = weight[channel] @ patches[channel // 2]
        torch.testing.assert_close(got.gamma[channel], expected[0])
        torch.testing.assert_close(got.beta[channel], expected[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_raw_responses_of_low_precision_weights_are_in_float32(dtype: torch.dtype) -> None:
    weight = torch.randn(6, 10).to(dtype)
    vectors = RawVectors(torch.randn(10, 2))
    found, exact = (raw_responses([part], [vectors]) for part in (weight, weight.double()))
    assert found.gamma.dtype == found.length.dtype == torch.float32
    torch.testing.assert_close(found.gamma.double(), exact.gamma, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.length.double(), exact.length, rtol=1e-6, atol=0)
