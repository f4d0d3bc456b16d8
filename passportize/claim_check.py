"""What the parts of a claim must have in common: sites, anchors, tensors, sizes."""

from __future__ import annotations

import torch

from passportize.anchors import anchor_fan_in
from passportize.claim import Claim
from passportize.private_statistics import OFFSET, RATIO
from passportize.site import Role
from passportize.strict_json import require

__all__ = ["check_claim"]

BOTTLENECK = ("bottleneck.0.weight", "bottleneck.2.weight")
MOST_BITS = 1 << 26
LONGEST_ROW = 1 << 30


def check_claim(claim: Claim) -> None:
    """Refuse a claim whose parts do not belong together.

    Raises:
        ValueError: They do not; with the reason.
        KeyError: A tensor or the shape of an anchor is missing.
    """
    require(len({site.name for site in claim.sites}) == len(claim.sites), "a site appears twice")
    names = [name for name, _ in claim.structure]
    require(len(set(names)) == len(names), "a tensor appears twice")
    require(0 < claim.bits <= MOST_BITS, f"{claim.bits} signature bits")
    used = set()
    expected: dict[str, tuple[int, ...]] = {}
    for index, site in enumerate(claim.sites):
        for name in (OFFSET, RATIO):
            if f"{index}.{name}" in claim.tensors:
                expected[f"{index}.{name}"] = (site.channels,)
        if site.role is not Role.BOUND:
            continue
        require(site.anchor is not None and bool(site.anchor.parts), "a bound site has no anchor")
        assert site.anchor is not None
        require(site.anchor.channels == site.channels, f"{site.name}: its anchor does not fit")
        for part in site.anchor.parts:
            used.add(part.weight)
            fan_in = anchor_fan_in(claim.anchors[part.weight], part)
            require(0 < fan_in <= LONGEST_ROW, f"{site.name}: rows of {fan_in} entries")
        if claim.configs[index].formulation == "paper":
            first = claim.tensors[f"{index}.{BOTTLENECK[0]}"]
            hidden = first.shape[0]
            expected[f"{index}.{BOTTLENECK[0]}"] = (hidden, site.channels)
            expected[f"{index}.{BOTTLENECK[1]}"] = (site.channels, hidden)
    require(used == set(claim.anchors), "its anchors are not those of its sites")
    require(set(expected) == set(claim.tensors), "its tensors are not those of its sites")
    for name, shape in expected.items():
        tensor = claim.tensors[name]
        require(tuple(tensor.shape) == shape, f"the tensor {name} has another shape")
        require(tensor.dtype.is_floating_point, f"the tensor {name} holds no numbers")
        require(bool(torch.isfinite(tensor).all()), f"the tensor {name} is not finite")
        if name.endswith(RATIO):
            require(bool((tensor >= 0).all()), f"the tensor {name} is negative")
