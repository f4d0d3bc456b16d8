"""Check the weights that a user named for norms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from passportize.anchors.weight_parts import part_of
from passportize.errors import AnchorNotFound, UnknownSite
from passportize.layers.computed import computed_from, effective_weight, is_computed
from passportize.signature.rows import anchor_width
from passportize.signature.site import Anchor
from passportize.utils.names import closest_names

__all__ = ["read_user_anchors"]


def read_user_anchors(
    model: nn.Module, widths: Mapping[str, Sequence[int]], chosen: Mapping[str, str]
) -> dict[str, Anchor]:
    """Check the anchors that a user named and bring them into the usual form.

    Args:
        model: The model.
        widths: Acceptable channel counts of each norm.
        chosen: Weight names by norm name.

    Raises:
        UnknownSite: There is no such norm.
        AnchorNotFound: There is no such weight, or it has no such number of channels.
    """
    if not chosen:
        return {}
    parameters = dict(model.named_parameters())
    modules = dict(model.named_modules())
    found: dict[str, Anchor] = {}
    for norm, weight in chosen.items():
        if norm not in widths:
            raise UnknownSite(
                f"anchors: {norm!r} is no normalization layer that can be bound."
                + closest_names(norm, list(widths))
            )
        computed = computed_from(modules, weight) or weight
        owner = modules.get(computed.rpartition(".")[0])
        attribute = computed.rpartition(".")[2]
        if owner is not None and is_computed(owner, attribute):
            shape = tuple(effective_weight(owner, attribute).shape)
            found[norm] = _user_anchor(norm, computed, shape, owner, widths[norm])
            continue
        if weight not in parameters:
            raise AnchorNotFound(
                f"{norm}: its anchor {weight!r} is no parameter of the model."
                + closest_names(weight, list(parameters))
            )
        owner = modules.get(weight.rpartition(".")[0])
        found[norm] = _user_anchor(
            norm, weight, tuple(parameters[weight].shape), owner, widths[norm]
        )
    return found


def _user_anchor(
    norm: str,
    weight: str,
    shape: tuple[int, ...],
    owner: nn.Module | None,
    widths: Sequence[int],
) -> Anchor:
    if len(shape) >= 2:
        for axis in ("output", "input"):
            part = part_of(owner, weight, axis)
            for width in widths:
                if anchor_width(shape, part) == width:
                    return Anchor((replace(part, channels=width),), "user")
    raise AnchorNotFound(
        f"{norm}: its anchor {weight!r} has shape {shape}, so it neither makes nor reads "
        f"{' or '.join(map(str, widths))} channels. Name a weight that does"
    )
