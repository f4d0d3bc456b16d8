"""The sites of a model without any norm: its conv and linear weights themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import nn
from torch.jit import ScriptModule

from passportize.anchors.weight_parts import part_of
from passportize.errors import NoNormalization, UninitializedModule
from passportize.layers.computed import can_compute, sources_of
from passportize.layers.derived import plain_class
from passportize.layers.weight_owner import OWN_RULE
from passportize.signature.rows import anchor_fan_in, anchor_width
from passportize.signature.site import Anchor, AnchorPart, Role, Site
from passportize.surgery.selection import Where, select
from passportize.tracing.weight_layers import matrix_shape
from passportize.utils.foreign import merged_later
from passportize.utils.names import describe_type

__all__ = ["weight_sites"]


def weight_sites(
    model: nn.Module, where: Where | None, include_frozen: bool, minimum_fan_in: int
) -> tuple[Site, ...]:
    """One site for every layer with a matrix of its own, in registration order.

    Convolutions and linear layers of torch and of others, see
    :func:`~passportize.tracing.weight_layers.matrix_shape`.

    Args:
        model: A model without norms; it is only read.
        where: Which layers to bind, by dotted name.
        include_frozen: Bind weights that do not train, too.
        minimum_fan_in: Rows with fewer entries carry no bit.

    Raises:
        NoNormalization: The model has no such layer either.
        UninitializedModule: One has not seen data yet.
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
    for (name, module, shape), wanted in zip(owners, chosen, strict=True):
        part = _part(name, module, shape)
        fan_in = anchor_fan_in(shape, part)
        trains = any(source.requires_grad for source in sources_of(module, "weight"))
        reason = ""
        if not wanted:
            reason = "left out by where="
        elif not trains and not include_frozen:
            reason = "its weight is frozen; bind it with include_frozen=True"
        elif fan_in < minimum_fan_in:
            reason = (
                f"a row of its weight has {fan_in} entries, fewer than the {minimum_fan_in} that "
                "a bit needs"
            )
        sites.append(
            Site(
                name=name,
                layer_type=describe_type(plain_class(module)),
                role=Role.SKIPPED if reason else Role.BOUND,
                channels=part.channels,
                anchor=None if reason else Anchor((part,), OWN_RULE),
                fan_in=0 if reason else fan_in,
                reason=reason,
            )
        )
    return tuple(sites)


def _owners(model: nn.Module) -> Iterator[tuple[str, nn.Module, tuple[int, ...]]]:
    """Layers with a matrix of their own, and its shape; one that several share counts once.

    Raises:
        UninitializedModule: A lazy layer has not seen data yet.
    """
    seen: set[int] = set()
    merged = merged_later(model)
    for name, module in model.named_modules():
        if isinstance(module, ScriptModule) or name in merged:
            continue
        own = module._parameters.get("weight")
        if own is not None and nn.parameter.is_lazy(own):
            raise UninitializedModule(
                f"{name}: {describe_type(type(module))} has not seen data yet, so its width is "
                "unknown; run the model once on an example input before passportizing it"
            )
        shape = matrix_shape(module)
        if shape is None or (own is None and not can_compute(module, "weight")):
            continue
        sources = {id(source) for source in sources_of(module, "weight")}
        if seen.isdisjoint(sources):
            yield name, module, shape
        seen |= sources


def _part(name: str, module: nn.Module, shape: tuple[int, ...]) -> AnchorPart:
    part = part_of(module, f"{name}.weight" if name else "weight")
    return replace(part, channels=anchor_width(shape, part))
