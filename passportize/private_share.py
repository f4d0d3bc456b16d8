"""How many samples of a batch the private branch sees, and what its loss counts for then."""

from __future__ import annotations

import math

from passportize.switch import Switch

__all__ = ["FULL_WEIGHT_ROWS", "MINIMUM_ROWS", "MINIMUM_SAMPLES", "private_share", "weight_for"]

MINIMUM_ROWS = 8
"""Samples of a batch that go through the private branch at least, where it has batch statistics.

Those of two samples are so ill conditioned that a deep network's gradients explode.
"""

MINIMUM_SAMPLES = 16
"""The same where a norm sees one value per channel of each sample, behind a global pooling say.

Elsewhere there are as many values as there are positions times samples.
"""

FULL_WEIGHT_ROWS = 32
"""From so many private samples on the private branch's loss counts in full, see `weight_for`."""


def private_share(switch: Switch, rows: int) -> int:
    """How many of the samples of a batch go through the private branch."""
    least = 1
    if switch.batch_statistics:
        least = MINIMUM_SAMPLES if switch.samples_only else MINIMUM_ROWS
    return min(rows, max(least, round(rows * switch.config.private_fraction)))


def weight_for(weight: float, public_rows: int, private_rows: int) -> float:
    """Weight of the private branch's loss where it sees fewer samples than the public one.

    The gradient of a mean over ``n`` samples has a variance of ``1 / n``. With a weight of
    ``sqrt(n / N)`` the private one adds no more than the public one has over ``N``, so that a few
    samples do not drown what the whole batch says. ``N`` is the batch, at most
    ``FULL_WEIGHT_ROWS``: over more samples the variance is small against what is learnt.

    >>> weight_for(1.0, 32, 8), weight_for(1.0, 8, 8), weight_for(1.0, 128, 32)
    (0.5, 1.0, 1.0)
    """
    enough = min(public_rows, FULL_WEIGHT_ROWS)
    return weight if private_rows >= enough else weight * math.sqrt(private_rows / enough)
