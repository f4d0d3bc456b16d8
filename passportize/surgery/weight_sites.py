"""The sites of a model none of whose norms carries bits: its matrices themselves."""

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
from passportize.tracing.weight_layers import Matrix, matrices_of
from passportize.utils.foreign import merged_later
from passportize.utils.names import describe_type

__all__ = ["weight_sites"]


def weight_sites(
    model: nn.Module, where: Where | None, include_frozen: bool, minimum_fan_in: int
) -> tuple[Site, ...]:
    """One site for every layer with a matrix of its own, in registration order.

    Convolutions, linear, recurrent and attention layers of torch and the likes of others, see
    :func:`~passportize.tracing.weight_layers.matrices_of`.

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
            f"{type(model).__name__} has neither normalization nor conv, linear, recurrent or "
            "attention layers, so there is nothing to carry a signature"
        )
    chosen = select([(name,) for name, _, _ in owners], where, "where")
    sites = []
    for (name, module, matrices), wanted in zip(owners, chosen, strict=True):
        parts = [_part(name, module, matrix) for matrix in matrices]
        long = [
            (part, fan_in)
            for part, matrix in zip(parts, matrices, strict=True)
            if (fan_in := anchor_fan_in(matrix.shape, part)) >= minimum_fan_in
        ]
        sources = [source for m in matrices for source in sources_of(module, m.attribute)]
        reason = ""
        if not wanted:
            reason = "left out by where="
        elif not include_frozen and not any(source.requires_grad for source in sources):
            reason = "its weight is frozen; bind it with include_frozen=True"
        elif not long:
            reason = (
                f"a row of its weight has {anchor_fan_in(matrices[0].shape, parts[0])} entries, "
                f"fewer than the {minimum_fan_in} that a bit needs"
            )
        bound = [] if reason else long
        sites.append(
            Site(
                name=name,
                layer_type=describe_type(plain_class(module)),
                role=Role.BOUND if bound else Role.SKIPPED,
                channels=sum(part.channels for part, _ in bound or ((part, 0) for part in parts)),
                anchor=Anchor(tuple(part for part, _ in bound), OWN_RULE) if bound else None,
                fan_in=min((fan_in for _, fan_in in bound), default=0),
                reason=reason,
            )
        )
    return tuple(sites)


def _owners(model: nn.Module) -> Iterator[tuple[str, nn.Module, list[Matrix]]]:
    """Layers with matrices of their own, and these; one that several share counts once.

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
        fresh = []
        for matrix in matrices_of(module):
            computed = module._parameters.get(matrix.attribute) is None
            if computed and not can_compute(module, matrix.attribute):
                continue
            sources = {id(source) for source in sources_of(module, matrix.attribute)}
            if seen.isdisjoint(sources):
                fresh.append(matrix)
            seen |= sources
        if fresh:
            yield name, module, fresh


def _part(name: str, module: nn.Module, matrix: Matrix) -> AnchorPart:
    weight = f"{name}.{matrix.attribute}" if name else matrix.attribute
    part = part_of(module, weight, matrix.axis)
    part = replace(part, transposed=matrix.transposed)
    return replace(part, channels=anchor_width(matrix.shape, part))
