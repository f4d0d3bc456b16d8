"""Ownership passports for any PyTorch model.

>>> import passportize as pp                                            # doctest: +SKIP
>>> model = pp.passportize(model, pp.Passport.generate(owner="Acme"))   # doctest: +SKIP
"""

from passportize.arbitration import Arbitration, Party, arbitrate
from passportize.checkpoint import host_state_dict
from passportize.claim import Claim, load_claim, save_claim
from passportize.config import PassportConfig
from passportize.embedding import Embedding, embed_signature
from passportize.errors import PassportizeError
from passportize.layer import PassportLayer
from passportize.passport import Passport
from passportize.planning import plan
from passportize.registry import register_adapter
from passportize.site_plan import Plan
from passportize.surgery import passportize, unlock, unpassportize
from passportize.training import (
    JointLoss,
    branch,
    joint_loss,
    passport_parameters,
    signature_accuracy,
)
from passportize.verdict import Verdict
from passportize.verification import verify

__version__ = "0.1.0"

__all__ = [
    "Arbitration",
    "Claim",
    "Embedding",
    "JointLoss",
    "Party",
    "Passport",
    "PassportConfig",
    "PassportLayer",
    "PassportizeError",
    "Plan",
    "Verdict",
    "arbitrate",
    "branch",
    "embed_signature",
    "host_state_dict",
    "joint_loss",
    "load_claim",
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
