"""timm's own training script with a passport, and the pieces for scripts of one's own."""

from typing import Any

from passportize.integrations.timm.launcher import launch
from passportize.integrations.timm.release import claim_checkpoint
from passportize.integrations.timm.session import prepare

__all__ = ["claim_checkpoint", "launch", "prepare"]


def __getattr__(name: str) -> Any:
    # Needs timm.task, which timm has since 1.0.23.
    if name == "PassportTask":
        from passportize.integrations.timm.task import PassportTask

        return PassportTask
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
