"""Protections side by side, for the bench: ours, the published ones, and those of others."""

from passportize.schemes.own import Keyed, Signature
from passportize.schemes.registry import find_scheme, register_scheme, scheme_names
from passportize.schemes.scheme import Factors, Finding, Protection, Release, Scheme

__all__ = [
    "Factors",
    "Finding",
    "Keyed",
    "Protection",
    "Release",
    "Scheme",
    "Signature",
    "find_scheme",
    "register_scheme",
    "scheme_names",
]
