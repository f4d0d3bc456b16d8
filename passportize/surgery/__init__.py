"""Private branches put into a model and taken out again: what would change, and the change."""

from passportize.surgery.planning import plan
from passportize.surgery.probing import ProbeReport, probe
from passportize.surgery.site_plan import Plan
from passportize.surgery.surgery import UnsavedBranchWarning, passportize, unlock, unpassportize

__all__ = [
    "Plan",
    "ProbeReport",
    "UnsavedBranchWarning",
    "passportize",
    "plan",
    "probe",
    "unlock",
    "unpassportize",
]
