"""Whether a passportized model is still as surgery left it; what came later is named."""

from __future__ import annotations

from collections.abc import Iterable
from types import MethodType

from torch import nn

from passportize.errors import BranchLost
from passportize.layers.layer import PassportLayer
from passportize.layers.switch import Switch

__all__ = ["check_layers"]


def check_layers(root: nn.Module, switch: Switch) -> None:
    """Raise BranchLost if layers were replaced, copied or patched after surgery.

    Args:
        root: The model whose forward pass begins.
        switch: The state that its layers are to share.
    """
    modules = list(root.modules())
    present = [module for module in modules if isinstance(module, PassportLayer)]
    names = [layer.passport.site.name for layer in present]
    kind = type(root).__name__
    if lost := [name for name in switch.sites if name not in set(names)]:
        raise BranchLost(
            f"{kind} had {len(switch.sites)} two-branch layers and has {len(present)}: "
            f"{_listed(lost)} lost its private branch to a later conversion "
            "(convert_sync_batchnorm, freeze_batch_norm_2d or the like); convert first and "
            "passportize then"
        )
    if len(present) > len(switch.sites) or any(x.passport.switch is not switch for x in present):
        raise BranchLost(_copies(root, switch))
    for layer in present:
        forward = vars(layer).get("forward")
        if type(forward) is MethodType and forward.__func__ is not type(layer).forward:
            raise BranchLost(
                f"{kind}: the forward of {layer.passport.site.name} was set on the object after "
                "passportize, so its private branch would never run; patch first and passportize "
                "then"
            )
    # The replicas of DataParallel read the weights of the model that they are made from.
    if not getattr(root, "_is_replica", False):
        _check_weights(kind, present, {id(module) for module in modules})


def _check_weights(kind: str, layers: Iterable[PassportLayer], there: set[int]) -> None:
    for layer in layers:
        weights = layer.passport.weights
        for owner, _, part in weights.owners if weights is not None else ():
            if id(owner) not in there:
                raise BranchLost(
                    f"{kind}: the layer with {part.weight}, which {layer.passport.site.name} is "
                    "bound to, was replaced after passportize (by a quantised one, or as its "
                    "parametrization was taken off); replace first and passportize then"
                )


def _copies(root: nn.Module, switch: Switch) -> str:
    """What to say of two-branch layers that surgery did not make."""
    seen: set[str] = set()
    copies = []
    for name, module in root.named_modules():
        if isinstance(module, PassportLayer):
            site = module.passport.site.name
            if module.passport.switch is not switch or site in seen:
                copies.append(f"{name or '(root)'} (of {site or '(root)'})")
            seen.add(site)
    return (
        f"{type(root).__name__} has copies of two-branch layers, which were made after passportize "
        f"and run in public only: {_listed(copies)}; call unpassportize(model), copy, and "
        "passportize then, or keep the copy outside the model"
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
