"""Bits that tell the copies of licensees apart, and whose copies a suspect was mixed from.

All copies of one release carry bits in the same rows, to the same vectors; only the bits differ.
Licensees who lay their copies side by side see where they differ and can put what they like there,
and where they agree they see nothing. Against that a code helps whose positions have biases of
their own, drawn by the key (G. Tardos, "Optimal probabilistic fingerprint codes", STOC 2003): the
bit of position ``j`` is 1 with probability ``p_j`` for every licensee.

What a suspect says at a position is weighed against a licensee's bit with the symmetric scores of
B. Skoric, S. Katzenbeisser and M. Celik ("Symmetric Tardos fingerprinting codes", 2008), in whole
numbers. The bits of somebody whose copy was not used are independent of the suspect, so the sum of
their scores has a distribution that is known exactly, whatever the suspect is: its tail is the
p-value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from passportize.passport.derivation import LabelledStream, derive_key
from passportize.passport.licensee import licensee_name
from passportize.passport.passport import Passport
from passportize.signature.formulations import NORMALISED
from passportize.signature.layout import Layout, anchor_of
from passportize.signature.model_key import ModelKey
from passportize.signature.site import AnchorPart
from passportize.signature.vectors import SignVectors, draw_sign_vectors

__all__ = ["FULL", "LicenceCode", "LicensedRows", "log2_tails"]

LEAST_BIAS = 0.01
"""Smallest probability of a 1, and of a 0."""

LEVELS = 16
"""So many different biases there are."""

FULL = 4
"""What a suspect says at a position: from -4, a zero, to 4, a one."""

_WHOLE = 1 << 16


def thresholds() -> list[int]:
    """The biases in units of ``2^-16``: equal steps of the angle whose squared sine they are."""
    first = math.asin(math.sqrt(LEAST_BIAS))
    step = (math.pi / 2 - 2 * first) / LEVELS
    return [round(_WHOLE * math.sin(first + (k + 0.5) * step) ** 2) for k in range(LEVELS)]


def scores() -> tuple[list[int], list[int]]:
    """For each bias what a 1 and a 0 count, where the suspect says 1."""
    odds = [math.sqrt((_WHOLE - bias) / bias) for bias in thresholds()]
    return [round(8 * odd) for odd in odds], [-round(8 / odd) for odd in odds]


class LicensedRows(NamedTuple):
    """Rows of one part of one site that tell copies apart.

    Attributes:
        site: Index of the site in the layout.
        part: The part.
        vectors: Of the rows.
        places: Their positions in the code.
    """

    site: int
    part: AnchorPart
    vectors: SignVectors
    places: slice


class LicenceCode:
    """Where the copies of one release carry bits, and which.

    The rows are drawn by the key among those that the owner's bits left over. Layout, number of
    rows and shortest row enter the key.

    Args:
        passport: The owner's passport.
        layout: Where the owner's bits lie.
        bits: How many rows are to tell copies apart; fewer where fewer are left.
        shortest_row: Rows with fewer entries are left out.
    """

    __slots__ = ("_keyed", "length", "rows")

    def __init__(self, passport: Passport, layout: Layout, bits: int, shortest_row: int) -> None:
        label = ("licences", layout.digest(), bits, shortest_row)
        self._keyed = LabelledStream(derive_key(passport.reading_key, *label))
        self.rows: list[LicensedRows] = []
        self.length = 0
        found = _left_over(ModelKey(passport, layout), layout, shortest_row)
        drawn = [
            self._keyed.words("rows", site, index, count=part.channels)[rows]
            for site, index, part, _, rows in found
        ]
        whole = torch.cat(drawn) if drawn else torch.zeros(0, dtype=torch.int64, device="cpu")
        # The smallest numbers; of equal ones the first.
        order = torch.argsort(whole, stable=True)[:bits]
        chosen = torch.zeros(len(whole), dtype=torch.bool, device="cpu")
        chosen[order] = True
        parts = torch.split(chosen, [len(rows) for *_, rows in found]) if found else ()
        for (site, index, part, fan_in, rows), taken in zip(found, parts, strict=True):
            own = rows[taken]
            if not len(own):
                continue
            name = layout.sites[site].name
            every = draw_sign_vectors(self._keyed, name, index, part.channels, fan_in)
            vectors = SignVectors(every.codes[own], every.offset, own)
            places = slice(self.length, self.length + len(own))
            self.rows.append(LicensedRows(site, part, vectors, places))
            self.length = places.stop

    def biases(self) -> Tensor:
        """Which of the :func:`thresholds` each position has, int64 ``[length]``."""
        if not self.length:
            return torch.zeros(0, dtype=torch.int64, device="cpu")
        return self._keyed.words("biases", count=self.length) % LEVELS

    def word(self, licensee: str) -> Tensor:
        """The bits of a licensee, int64 ``[length]`` of 0 and 1."""
        if not self.length:
            return torch.zeros(0, dtype=torch.int64, device="cpu")
        drawn = self._keyed.words("licensee", licensee_name(licensee), count=self.length) % _WHOLE
        return (drawn < torch.tensor(thresholds(), device="cpu")[self.biases()]).long()

    def score(self, licensee: str, said: Tensor) -> int:
        """How much of a licensee's bits is in a suspect.

        Args:
            licensee: Their name.
            said: What the suspect says, from :data:`FULL` for a 1 to ``-FULL`` for a 0, int64
                ``[length]``; 0 where it says nothing.
        """
        ones, zeros = (torch.tensor(each, device="cpu")[self.biases()] for each in scores())
        return int((said * torch.where(self.word(licensee) > 0, ones, zeros)).sum())

    def log2_p(self, sums: Sequence[int], said: Tensor) -> list[float]:
        """For each sum of scores, how probable one as high is for somebody uninvolved."""
        ones, zeros = scores()
        biases = self.biases().tolist()
        counted = [(place, int(value)) for place, value in enumerate(said.tolist()) if value]
        return log2_tails(
            [
                (
                    value * zeros[biases[place]],
                    value * ones[biases[place]],
                    thresholds()[biases[place]] / _WHOLE,
                )
                for place, value in counted
            ],
            sums,
        )

    def __repr__(self) -> str:
        return f"LicenceCode({self.length} bits, key hidden)"


def _left_over(
    key: ModelKey, layout: Layout, shortest_row: int
) -> list[tuple[int, int, AnchorPart, int, Tensor]]:
    """Rows that carry no bit of the owner: site, index and part, fan-in, which rows."""
    found = []
    for site, _ in enumerate(layout.sites):
        if layout.formulation(site) is not NORMALISED:
            continue
        parts = zip(
            anchor_of(layout.sites[site]).parts, key.sides(site), layout.fan_in(site), strict=True
        )
        for index, (part, side, fan_in) in enumerate(parts):
            if side.rows is None or fan_in < shortest_row:
                continue
            free = torch.ones(part.channels, dtype=torch.bool, device="cpu")
            free[side.rows] = False
            found.append((site, index, part, fan_in, free.nonzero().flatten()))
    return found


def log2_tails(terms: Sequence[tuple[int, int, float]], sums: Sequence[int]) -> list[float]:
    """``log2 P(sum of independent terms >= s)`` for several ``s``, exactly.

    The distribution is built term by term, in sums of positive numbers alone; what is below the
    smallest double counts as that.

    >>> [round(tail, 3) for tail in log2_tails([(0, 1, 0.5)] * 3, [0, 2, 3])]
    [0.0, -1.0, -3.0]

    Args:
        terms: Both values of each term, and the probability of the second.
        sums: Where the tails begin.
    """
    least = sum(min(low, high) for low, high, _ in terms)
    span = sum(abs(high - low) for low, high, _ in terms)
    mass = np.zeros(span + 1)
    mass[0] = 1.0
    size = 1
    for low, high, chance in terms:
        apart = abs(high - low)
        upper = chance if high >= low else 1 - chance
        known = mass[:size] * upper
        mass[:size] *= 1 - upper
        size += apart
        mass[apart:size] += known
    tails = np.cumsum(mass[::-1])[::-1]
    found = []
    for value in sums:
        if value <= least:
            found.append(0.0)
            continue
        tail = tails[value - least] if value - least <= span else 0.0
        found.append(math.log2(min(1.0, max(float(tail), 2.0**-1022))))
    return found
