"""Ownership passports for any PyTorch model: protect, train, strip, prove.

A small network, to be protected, and a passport; what would be bound to it, before anything is:

>>> import tempfile
>>> import torch
>>> import passportize as pp
>>> model = torch.nn.Sequential(
...     torch.nn.Linear(8, 64), torch.nn.BatchNorm1d(64), torch.nn.ReLU(), torch.nn.Linear(64, 64),
...     torch.nn.LayerNorm(64), torch.nn.ReLU(), torch.nn.Linear(64, 4),
... )
>>> inputs, labels = torch.randn(32, 8), torch.randint(4, (32,))
>>> passport = pp.Passport.generate("Acme")
>>> print(pp.plan(model, example_inputs=inputs).summary())
Sequential: 2 norms, 2 bound; 128 bits

Every norm gets a private branch. All bits are put in at once; training works on both branches:

>>> model = pp.passportize(model, passport, example_inputs=inputs)
>>> pp.embed_signature(model).after
128
>>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
>>> loss = pp.joint_loss(model, inputs, labels, torch.nn.functional.cross_entropy)
>>> loss.total.backward()
>>> optimizer.step()

The claim is kept and its digest published; what is released is the plain model:

>>> with tempfile.TemporaryDirectory() as folder:
...     claim = pp.save_claim(model, f"{folder}/acme.claim.safetensors")
>>> model = pp.unpassportize(model)
>>> type(model[1])
<class 'torch.nn.modules.batchnorm.BatchNorm1d'>

When a copy turns up:

>>> verdict = pp.verify(model, passport, claim)
>>> verdict.accepted, verdict.message.owner
(True, 'Acme')
"""

from pathlib import Path as _Path

if _Path(__file__).with_name("adapters").is_file():
    raise ImportError(
        "passportize/adapters is a file where a symbolic link should be: this checkout was made "
        "without symbolic links; `git config core.symlinks true` and check out again (Windows: in "
        "developer mode), or `pip install .` and work outside the checkout"
    )

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
from passportize.release.claim_file import check_claimable, load_claim, save_claim
from passportize.release.inputs_file import load_inputs, save_inputs
from passportize.release.licensed_copy import LicensedCopy, mark_copy
from passportize.release.opening import OpenedCommitment, commit_release, open_commitment
from passportize.release.release_commitment import ReleaseCommitment
from passportize.surgery.planning import plan
from passportize.surgery.site_plan import Plan
from passportize.surgery.surgery import passportize, unlock, unpassportize
from passportize.training.embedding import Embedding, embed_signature
from passportize.training.loss import JointLoss, joint_loss, passport_parameters, signature_accuracy
from passportize.training.private_statistics import renew_statistics
from passportize.verification.arbitration import Arbitration, Party, arbitrate
from passportize.verification.identification import Identification, identify
from passportize.verification.verdict import Verdict
from passportize.verification.verification import verify

__version__ = "0.1.0"

__all__ = [
    "Arbitration",
    "Claim",
    "Embedding",
    "Identification",
    "JointLoss",
    "LicensedCopy",
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
    "check_claimable",
    "commit_release",
    "embed_signature",
    "host_state_dict",
    "identify",
    "joint_loss",
    "load_claim",
    "load_inputs",
    "mark_copy",
    "open_commitment",
    "passport_parameters",
    "passportize",
    "plan",
    "register_adapter",
    "renew_statistics",
    "save_claim",
    "save_inputs",
    "signature_accuracy",
    "unlock",
    "unpassportize",
    "verify",
]
