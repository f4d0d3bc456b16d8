"""The scheme: which rows answer to which vectors, the bits in them and what they prove.

Values and mathematics on tensors; no live model, so that an expert witness reads this room and
:mod:`passportize.passport`, and nothing else.
"""

from passportize.signature.evidence import Evidence, judge_evidence, read_evidence
from passportize.signature.layout import Layout
from passportize.signature.model_key import ModelKey
from passportize.signature.reading import Reading, read_signature
from passportize.signature.site import Anchor, AnchorPart, Role, Site

__all__ = [
    "Anchor",
    "AnchorPart",
    "Evidence",
    "Layout",
    "ModelKey",
    "Reading",
    "Role",
    "Site",
    "judge_evidence",
    "read_evidence",
    "read_signature",
]
