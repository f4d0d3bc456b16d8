"""The null hypothesis of a test: bits match like fair coins, triggers like dice of many sides."""

from __future__ import annotations

import math

from passportize.errors import InvalidArgument

__all__ = ["log2_arrangements", "log2_binomial_tail", "probability_text"]

_LOG_2 = math.log(2.0)


def log2_binomial_tail(matched: int, total: int, chance: float = 0.5) -> float:
    """``log2 P(X >= matched)`` for ``X`` binomial; never underflows.

    The sum of the exact terms ``C(total, k) chance^k (1 - chance)^(total - k)``, in logarithms.

    >>> log2_binomial_tail(4800, 4800)
    -4800.0

    Args:
        matched: Trials that match, between 0 and ``total``.
        total: Trials: bits that were read, or triggers that were shown.
        chance: Probability of a match under the null hypothesis, between 0 and 1.

    Raises:
        InvalidArgument: The numbers make no sense.
    """
    if not 0 <= matched <= total:
        raise InvalidArgument(f"{matched} of {total} bits cannot match")
    if not 0 < chance < 1:
        raise InvalidArgument(f"chance={chance!r} must lie between 0 and 1")
    if matched == 0:
        return 0.0
    # Here, because importing scipy takes longer than the rest of passportize together.
    import numpy as np
    from scipy.special import gammaln, logsumexp

    k = np.arange(matched, total + 1, dtype=np.float64)
    # Relative to (1 - chance)**total, so that the largest tail is not lost in rounding.
    terms = gammaln(total + 1.0) - gammaln(k + 1.0) - gammaln(total - k + 1.0)
    terms = terms + k * (math.log(chance) - math.log1p(-chance))
    none = total * (math.log1p(-chance) / _LOG_2)
    return min(0.0, float(logsumexp(terms)) / _LOG_2 + none)


def log2_arrangements(candidates: int, chosen: int) -> float:
    """``log2`` of the number of ways to give ``chosen`` tensors places among ``candidates``.

    >>> log2_arrangements(4, 1)
    2.0
    """
    return sum(math.log2(candidates - place) for place in range(chosen))


def probability_text(log2_p: float) -> str:
    """A probability as people read it, down to sizes that no float holds.

    >>> probability_text(-1.0), probability_text(-4800.0)
    ('0.50', '2^-4800')
    """
    if log2_p > -10:
        return f"{2.0**log2_p:.2g}" if log2_p < -1 else f"{2.0**log2_p:.2f}"
    exponent = math.ceil(log2_p * 10) / 10
    return f"2^{exponent:.0f}" if exponent == int(exponent) else f"2^{exponent:.1f}"
