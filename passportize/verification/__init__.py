"""Judging a suspect: what was claimed, what its weights carry, and who was first."""

from passportize.verification.arbitration import Arbitration, Party, arbitrate
from passportize.verification.fidelity import measure_fidelity
from passportize.verification.triggers import check_triggers, cloud_triggers, image_triggers
from passportize.verification.verdict import Verdict
from passportize.verification.verification import verify

__all__ = [
    "Arbitration",
    "Party",
    "Verdict",
    "arbitrate",
    "check_triggers",
    "cloud_triggers",
    "image_triggers",
    "measure_fidelity",
    "verify",
]
