"""What is kept and what is published: claims, checkpoints without a trace, exports."""

from passportize.release.audit import is_clean
from passportize.release.checkpoint import host_state_dict, load_weights, save_weights
from passportize.release.claim import Claim
from passportize.release.claim_file import load_claim, save_claim
from passportize.release.exporting import export
from passportize.release.opening import OpenedCommitment, commit_release, open_commitment
from passportize.release.preprocessing import Preprocessing
from passportize.release.release_commitment import ReleaseCommitment
from passportize.release.strip import strip_checkpoint

__all__ = [
    "Claim",
    "OpenedCommitment",
    "Preprocessing",
    "ReleaseCommitment",
    "commit_release",
    "export",
    "host_state_dict",
    "is_clean",
    "load_claim",
    "load_weights",
    "open_commitment",
    "save_claim",
    "save_weights",
    "strip_checkpoint",
]
