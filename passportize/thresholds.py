"""The thresholds of a verdict, fixed before any measurement and not to be tuned afterwards."""

from __future__ import annotations

__all__ = ["ACCEPT_STRENGTH", "FIDELITY_GAP"]

ACCEPT_STRENGTH = 64.0
"""Bits of evidence, ``-log2 p``, from which on a signature is accepted. A stranger's key gets
there once in ``2**64`` tries, so nobody finds one that does by drawing keys."""

FIDELITY_GAP = 5.0
"""Points of accuracy that the private branch may lie below the public one."""
