"""The fixed numbers of a verdict, which no argument changes."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

__all__ = [
    "ACCEPT_STRENGTH",
    "FIDELITY_GAP",
    "FITTED_PENALTY",
    "FITTED_SHARE",
    "FITTED_WAYS",
    "LINK_LIKENESS",
    "LINK_P_VALUE",
    "NAME_STRENGTH",
    "Penalty",
]

ACCEPT_STRENGTH = 64.0
"""Bits of evidence, ``-log2 p``, from which on a signature is accepted. A stranger's key gets
there once in ``2**64`` tries, so nobody finds one that does by drawing keys."""

FIDELITY_GAP = 5.0
"""Points of accuracy that the private branch may lie below the public one."""

FITTED_PENALTY = 10.0
"""Size of inputs below which a third fitting leaves little of a row, in units of the mean over all
directions. Chosen on a marked ConvNeXt under noise where its mark lies; no p-value depends on it.
"""

FITTED_SHARE = 0.003
"""What fitting a suspect's layers anew may make of what they compute. Thresholds were fixed before
anything was measured; this was chosen on two marked networks: at a third of it more noise stays,
at three times of it more of the mark goes with the noise. No p-value depends on it."""

Penalty: TypeAlias = Literal["rows", "weights", "inputs"]
"""What sets the penalty of a fitting: each row, the rows of a weight, or the inputs alone."""

FITTED_WAYS: tuple[Penalty, ...] = get_args(Penalty)
"""How a suspect is fitted on the owner's inputs, where the claim names some; all are paid for."""

LINK_LIKENESS = 0.5
"""Correlation that the weights of a suspect must have with the released ones, beyond chance, after
a disguise was undone. To get a copy there, noise must be added that is 1.7 times as long as its
rows; rows of models that know nothing of each other have about 0."""

LINK_P_VALUE = 0.001
"""Share of random matchings that may be as good as the one that was found."""

NAME_STRENGTH = 20.0
"""Bits from which a licensee is named: one wrong name in a million questions."""
