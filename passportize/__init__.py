"""Ownership passports for any PyTorch model.

>>> import passportize as pp                                            # doctest: +SKIP
>>> model = pp.passportize(model, pp.Passport.generate(owner="Acme"))   # doctest: +SKIP
"""

# Registers the norms of torch.
from passportize import adapters as adapters
from passportize.config import PassportConfig
from passportize.errors import PassportizeError
from passportize.layers.layer import PassportLayer
from passportize.layers.model import branch
from passportize.layers.registry import register_adapter
from passportize.passport.passport import Passport
from passportize.release.checkpoint import host_state_dict
from passportize.release.claim import Claim
from passportize.release.claim_file import load_claim, save_claim
from passportize.release.opening import OpenedCommitment, commit_release, open_commitment
from passportize.release.release_commitment import ReleaseCommitment
from passportize.surgery.planning import plan
from passportize.surgery.site_plan import Plan
from passportize.surgery.surgery import passportize, unlock, unpassportize
from passportize.training.embedding import Embedding, embed_signature
from passportize.training.loss import JointLoss, joint_loss, passport_parameters, signature_accuracy
from passportize.verification.arbitration import Arbitration, Party, arbitrate
from passportize.verification.verdict import Verdict
from passportize.verification.verification import verify

__version__ = "0.1.0"

__all__ = [
    "Arbitration",
    "Claim",
    "Embedding",
    "JointLoss",
    "OpenedCommitment",
    "Party",
    "Passport",
    "PassportConfig",
    "PassportLayer",
    "PassportizeError",
    "Plan",
    "ReleaseCommitment",
    "Verdict",
    "arbitrate",
    "branch",
    "commit_release",
    "embed_signature",
    "host_state_dict",
    "joint_loss",
    "load_claim",
    "open_commitment",
    "passport_parameters",
    "passportize",
    "plan",
    "register_adapter",
    "save_claim",
    "signature_accuracy",
    "unlock",
    "unpassportize",
    "verify",
]
