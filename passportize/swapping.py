"""One live norm and its two-branch layer: a change of class and a submodule, there and back."""

from __future__ import annotations

from torch import nn

from passportize.errors import SurgeryError
from passportize.layer import PassportLayer
from passportize.private_branch import Branch
from passportize.structural_adapter import adapter_of
from passportize.weight_owner import OWN_RULE, weight_owner_class

__all__ = ["swap", "swap_back"]


def swap(norm: nn.Module, branch: Branch) -> None:
    """Make one live norm a two-branch layer.

    Raises:
        SurgeryError: It has no adapter, or an attribute called ``passport``.
    """
    anchor = branch.site.anchor
    adapter: type[PassportLayer] | None
    if anchor is not None and anchor.rule == OWN_RULE:
        adapter = weight_owner_class(type(norm))
    else:
        adapter = adapter_of(norm)
    if adapter is None:
        raise SurgeryError(f"{branch.site.name}: {type(norm).__name__} has no adapter")
    if hasattr(norm, "passport"):
        raise SurgeryError(
            f"{branch.site.name}: the norm already has an attribute called 'passport'; rename it "
            "or leave the norm out with where="
        )
    norm.__class__ = adapter
    try:
        norm._modules["passport"] = branch
    except BaseException:
        norm.__class__ = adapter.host_class
        raise


def swap_back(layer: nn.Module) -> None:
    """Make a two-branch layer the norm that it was."""
    adapter = type(layer)
    host_class = adapter.host_class  # type: ignore[attr-defined]
    del layer._modules["passport"]
    layer.__class__ = host_class
