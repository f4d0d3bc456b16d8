"""What lives inside a model while it is passportized: two-branch layers and hooks."""

from passportize.layers.host_view import HostView
from passportize.layers.layer import PassportLayer
from passportize.layers.model import branch, is_passportized, passport_layers, switch_of
from passportize.layers.private_branch import Branch
from passportize.layers.registry import register_adapter

__all__ = [
    "Branch",
    "HostView",
    "PassportLayer",
    "branch",
    "is_passportized",
    "passport_layers",
    "register_adapter",
    "switch_of",
]
