"""The p-value of a signature, and how it is written."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passportize.errors import InvalidArgument
from passportize.signature.null_model import (
    log2_arrangements,
    log2_binomial_tail,
    probability_text,
)


@pytest.mark.parametrize("total", [1, 2, 9, 33])
def test_tail_is_the_sum_of_the_binomial_terms(total: int) -> None:
    for matched in range(total + 1):
        ways = sum(math.comb(total, k) for k in range(matched, total + 1))
        expected = math.log2(Fraction(ways, 2**total))
        assert log2_binomial_tail(matched, total) == pytest.approx(expected, abs=1e-12)


def exact_log2_tail(matched: int, total: int) -> float:
    ways = sum(math.comb(total, k) for k in range(matched, total + 1))
    size = ways.bit_length()
    return math.log2(float(Fraction(ways, 1 << size))) + size - total


@pytest.mark.parametrize("total", [1, 7, 64, 500, 2000])
def test_tail_against_integer_arithmetic(total: int) -> None:
    for matched in {0, 1, total // 3, total // 2, (2 * total) // 3, total - 1, total}:
        ours = log2_binomial_tail(matched, total)
        assert ours == pytest.approx(exact_log2_tail(matched, total), abs=1e-9, rel=1e-11)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_tail_on_random_counts(pair: tuple[int, int]) -> None:
    assert log2_binomial_tail(*pair) == pytest.approx(exact_log2_tail(*pair), abs=1e-10)


def test_tail_does_not_underflow() -> None:
    assert log2_binomial_tail(100_000, 100_000) == -100_000.0
    assert -100_000 < log2_binomial_tail(90_000, 100_000) < -50_000


def test_all_or_nothing_is_exact() -> None:
    assert log2_binomial_tail(0, 0) == log2_binomial_tail(0, 7) == 0.0
    assert log2_binomial_tail(7, 7) == -7.0
    assert log2_binomial_tail(1_000_000, 1_000_000) == -1_000_000.0


def test_no_probability_is_larger_than_one() -> None:
    """Sums of many terms may be so by rounding."""
    assert max(log2_binomial_tail(1, total) for total in range(60, 4000, 7)) <= 0.0


@pytest.mark.parametrize("pair", [(-1, 5), (6, 5), (0, -1)])
def test_impossible_counts_are_refused(pair: tuple[int, int]) -> None:
    with pytest.raises(InvalidArgument, match=f"{pair[0]} of {pair[1]} bits cannot match"):
        log2_binomial_tail(*pair)


@pytest.mark.parametrize(("candidates", "chosen"), [(4, 0), (4, 1), (5, 3), (9, 9), (300, 40)])
def test_arrangements_are_counted_without_repeats(candidates: int, chosen: int) -> None:
    expected = math.log2(math.perm(candidates, chosen))
    assert log2_arrangements(candidates, chosen) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(
    ("log2_p", "text"),
    [
        (0.0, "1.00"),
        (-0.5, "0.71"),
        (-1.0, "0.50"),
        (-1.001, "0.5"),
        (-3.0, "0.12"),
        (-9.99, "0.00098"),
        (-10.0, "2^-10"),
        (-10.04, "2^-10"),
        (-64.19, "2^-64.1"),
        (-64.2, "2^-64.2"),
        (-4800.0, "2^-4800"),
    ],
)
def test_a_probability_is_never_written_smaller_than_it_is(log2_p: float, text: str) -> None:
    """From 2^-10 on the exponent is rounded up to a tenth."""
    assert probability_text(log2_p) == text


# --- trials that are no fair coins --------------------------------------------------------------


@pytest.mark.parametrize("sides", [2, 3, 10, 1000])
def test_the_tail_of_dice_against_exact_fractions(sides: int) -> None:
    total, chance = 40, Fraction(1, sides)
    for matched in range(total + 1):
        exact = sum(
            math.comb(total, k) * chance**k * (1 - chance) ** (total - k)
            for k in range(matched, total + 1)
        )
        wanted = math.log2(exact.numerator) - math.log2(exact.denominator)
        ours = log2_binomial_tail(matched, total, 1 / sides)
        assert ours == pytest.approx(wanted, abs=1e-9, rel=1e-11)


def test_many_dice_do_not_underflow() -> None:
    assert log2_binomial_tail(340, 340, 0.1) == pytest.approx(-340 * math.log2(10))
    assert log2_binomial_tail(5000, 5000, 1e-4) == pytest.approx(5000 * math.log2(1e-4))


@pytest.mark.parametrize("chance", [0.0, 1.0, -0.1, math.nan])
def test_chances_that_are_none(chance: float) -> None:
    with pytest.raises(InvalidArgument, match="chance"):
        log2_binomial_tail(1, 2, chance)
