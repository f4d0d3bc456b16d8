"""Protections side by side, for the bench: ours, the published ones, and those of others."""

from passportize.schemes.brought import BroughtBranch, Factors
from passportize.schemes.own import Keyed, Signature
from passportize.schemes.published import DeepIPR, Paper
from passportize.schemes.registry import find_scheme, register_scheme, scheme_names
from passportize.schemes.scheme import Finding, Protection, Release, Scheme
from passportize.schemes.uchida import Uchida

__all__ = [
    "BroughtBranch",
    "DeepIPR",
    "Factors",
    "Finding",
    "Keyed",
    "Paper",
    "Protection",
    "Release",
    "Scheme",
    "Signature",
    "Uchida",
    "find_scheme",
    "register_scheme",
    "scheme_names",
]
