"""The passport: one secret and its owner, what they give, and the files that hold them."""

from passportize.passport.commitment import check_commitment
from passportize.passport.message import OwnerMessage
from passportize.passport.message_code import read_message
from passportize.passport.passport import Passport

__all__ = ["OwnerMessage", "Passport", "check_commitment", "read_message"]
