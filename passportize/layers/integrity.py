"""Whether a passportized model is still as surgery left it; what came later is named."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from passportize.errors import BranchLost
from passportize.layers.computed import can_compute, effective_weight, is_computed, is_in_files
from passportize.layers.layer import PassportLayer
from passportize.layers.own_methods import reaches_class
from passportize.layers.switch import Switch
from passportize.signature.layout import Layout

__all__ = ["check_anchors", "check_layers"]


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
        # Only the weight counts of a layer that carries bits in its own.
        if layer.scale_name and not reaches_class(layer):
            raise BranchLost(
                f"{kind}: the forward of {layer.passport.site.name} was set on the object after "
                "passportize, so its private branch would never run; patch first and passportize "
                "then, or wrap with functools.wraps what is there"
            )
    # The replicas of DataParallel read the weights of the model that they are made from.
    if not getattr(root, "_is_replica", False):
        _check_weights(kind, present, {id(module) for module in modules})


def _check_weights(kind: str, layers: Iterable[PassportLayer], there: set[int]) -> None:
    for layer in layers:
        weights = layer.passport.weights
        for owner, attribute, part in weights.owners if weights is not None else ():
            what = f"{kind}: {part.weight}, which {layer.passport.site.name} is bound to,"
            if id(owner) not in there:
                raise BranchLost(
                    f"{what} is of a layer that was replaced after passportize (by a quantised "
                    "one, say); replace first and passportize then"
                )
            if is_computed(owner, attribute) and not can_compute(owner, attribute):
                raise BranchLost(
                    f"{what} got a parametrization after passportize that has buffers, which may "
                    "change whenever somebody asks for the weight; take it off"
                )


def check_anchors(root: nn.Module, layout: Layout) -> None:
    """Raise BranchLost if bits could not be read from the weights of a model as it is now.

    Args:
        root: A passportized model, not sharded.
        layout: Where its bits lie.
    """
    bound = [m for m in root.modules() if isinstance(m, PassportLayer) and m.passport.bound]
    for layer, shapes in zip(bound, layout.shapes, strict=True):
        weights = layer.passport.weights
        assert weights is not None
        for (owner, attribute, part), shape in zip(weights.owners, shapes, strict=True):
            what = f"{type(root).__name__}: {part.weight}, which {layer.passport.site.name} is "
            if owner._parameters.get(attribute) is None and not is_in_files(owner, attribute):
                raise BranchLost(
                    f"{what}bound to, is computed in a way that no file of weights tells; take "
                    "that off first (torch.nn.utils.parametrize.remove_parametrizations, or "
                    "whatever has put it on)"
                )
            now = tuple(effective_weight(owner, attribute).shape)
            if now != shape:
                raise BranchLost(
                    f"{what}bound to, had the shape {shape} when passportize was called and has "
                    f"{now} now; resize first and passportize then"
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
