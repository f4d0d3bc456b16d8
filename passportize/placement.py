"""Where the sites of a claim are in another model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from passportize.config import PassportConfig
from passportize.layout import Layout
from passportize.matching import TensorMatch
from passportize.site import Anchor, Role, Site
from passportize.structural_adapter import adapter_of

__all__ = ["PrivateBranch", "place_sites"]


@dataclass(frozen=True)
class PrivateBranch:
    """What is needed to put a private branch back.

    Attributes:
        sites: Sites with the names of the model that is looked at.
        configs: The formulation of each.
        config: The model-wide formulation.
        layout: The layout that the bits were embedded with.
        tensors: Statistics and bottleneck of each site, by what they are.
    """

    sites: Sequence[Site]
    configs: Sequence[PassportConfig]
    config: PassportConfig
    layout: Layout
    tensors: Sequence[Mapping[str, Tensor]]


def place_sites(
    sites: Sequence[Site],
    structure: Iterable[tuple[str, tuple[int, ...]]],
    match: TensorMatch,
    model: nn.Module,
) -> list[Site] | str:
    """The sites of a claim with the names of a model, or the reason why one has no place.

    Args:
        sites: Sites of a claim.
        structure: Names and shapes of the claim's tensors.
        match: The model's name for each.
        model: Where they are to be placed.
    """
    owners: dict[str, str] = {}
    for name, _ in structure:
        other = match.found.get(name)
        if other is not None:
            owners.setdefault(name.rpartition(".")[0], other.rpartition(".")[0])
    placed = []
    for site in sites:
        name = owners.get(site.name, site.name)
        try:
            norm = model.get_submodule(name)
        except AttributeError:
            return f"the suspect has no layer in the place of {site.name}"
        if adapter_of(norm) is None:
            return f"{name} is a {type(norm).__name__} in the suspect, not a known norm"
        anchor = site.anchor
        if site.role is Role.BOUND and anchor is not None:
            parts = []
            for part in anchor.parts:
                weight = match.found.get(part.weight)
                if weight is None:
                    return f"the suspect has no weight in the place of {part.weight}"
                parts.append(replace(part, weight=weight))
            anchor = Anchor(tuple(parts), anchor.rule, anchor.crossed)
        placed.append(replace(site, name=name, anchor=anchor))
    return placed
