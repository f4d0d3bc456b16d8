"""The sites of a model without any norm: its conv and linear weights themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor, nn

from passportize.anchors.weight_parts import part_of
from passportize.errors import NoNormalization
from passportize.layers.weight_owner import OWN_RULE
from passportize.signature.rows import anchor_fan_in, anchor_width
from passportize.signature.site import Anchor, AnchorPart, Role, Site
from passportize.surgery.selection import Where, select
from passportize.tracing.weight_layers import is_weight_module
from passportize.utils.names import describe_type

__all__ = ["weight_sites"]


def weight_sites(
    model: nn.Module, where: Where | None, include_frozen: bool, minimum_fan_in: int
) -> tuple[Site, ...]:
    """One site for every conv and linear layer that owns a weight, in registration order.

    Args:
        model: A model without norms; it is only read.
        where: Which layers to bind, by dotted name.
        include_frozen: Bind weights that do not train, too.
        minimum_fan_in: Rows with fewer entries carry no bit.

    Raises:
        NoNormalization: The model has no such layer either.
        UnknownSite: A pattern names no such layer.
    """
    owners = list(_owners(model))
    if not owners:
        raise NoNormalization(
            f"{type(model).__name__} has neither normalization nor conv or linear layers, so there "
            "is nothing to carry a signature"
        )
    chosen = select([(name,) for name, _, _ in owners], where, "where")
    sites = []
    for (name, module, weight), wanted in zip(owners, chosen, strict=True):
        part = _part(name, module, weight)
        fan_in = anchor_fan_in(tuple(weight.shape), part)
        reason = ""
        if not wanted:
            reason = "left out by where="
        elif not weight.requires_grad and not include_frozen:
            reason = "its weight is frozen; bind it with include_frozen=True"
        elif fan_in < minimum_fan_in:
            reason = (
                f"a row of its weight has {fan_in} entries, fewer than the {minimum_fan_in} that "
                "a bit needs"
            )
        sites.append(
            Site(
                name=name,
                layer_type=describe_type(type(module)),
                role=Role.SKIPPED if reason else Role.BOUND,
                channels=part.channels,
                anchor=None if reason else Anchor((part,), OWN_RULE),
                fan_in=0 if reason else fan_in,
                reason=reason,
            )
        )
    return tuple(sites)


def _owners(model: nn.Module) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Layers with a weight of their own; a weight that several share counts once."""
    seen: set[int] = set()
    for name, module in model.named_modules():
        if not is_weight_module(module):
            continue
        # Not a weight that is computed by a parametrization.
        weight = module._parameters.get("weight")
        if weight is not None and id(weight) not in seen:
            seen.add(id(weight))
            yield name, module, weight


def _part(name: str, module: nn.Module, weight: Tensor) -> AnchorPart:
    part = part_of(module, f"{name}.weight" if name else "weight")
    return replace(part, channels=anchor_width(weight.shape, part))
