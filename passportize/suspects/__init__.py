"""Files as suspects turn up in them: two dozen kinds, read as data, and no size believed."""

from passportize.suspects.kinds import KINDS
from passportize.suspects.reading import Opened, read_suspect

__all__ = ["KINDS", "Opened", "read_suspect"]
