"""The host's own forward with other factors and statistics, without touching the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

__all__ = ["HostView"]


class HostView:
    """A norm in which some attributes are replaced; everything else is the norm's.

    ``HostClass.forward(HostView(norm, {"weight": scale}), x)`` computes exactly what the host
    computes, whatever its release does inside (activation, casts, fast kernels), with another
    scale. Nothing is set on the norm, so threads, hooks and checkpointing never see the change.

    Args:
        norm: The live norm.
        replaced: Attributes that the forward finds instead of the norm's.
    """

    def __init__(self, norm: nn.Module, replaced: Mapping[str, Any]) -> None:
        self.__dict__.update(replaced)
        self.__dict__["_norm"] = norm

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_norm"], name)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """The norm's class, so that ``super().forward(x)`` inside a host's forward works."""
        norm = self.__dict__.get("_norm")
        # torch.compile asks before __init__ has run.
        return HostView if norm is None else type(norm)
