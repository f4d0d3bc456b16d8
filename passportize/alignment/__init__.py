"""Disguises that change no output, undone with the released weights at hand."""

from passportize.alignment.alignment import align
from passportize.alignment.narrowing import narrow
from passportize.alignment.similarity import measure_similarity
from passportize.alignment.tied_channels import find_tied_channels

__all__ = ["align", "find_tied_channels", "measure_similarity", "narrow"]
