"""What is claimed about a suspect, by a claim or by its own plan, and where that is in a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from passportize.config import PassportConfig
from passportize.errors import InvalidArgument
from passportize.layers.unregistered_norm import adapter_of
from passportize.release.claim import Claim
from passportize.signature.layout import Layout
from passportize.signature.marking import Marking
from passportize.signature.site import Anchor, Role
from passportize.surgery.branches import anchor_shapes
from passportize.surgery.norms import find_norms
from passportize.surgery.planning import plan

__all__ = ["Expectation", "Placement"]


@dataclass(frozen=True)
class Placement:
    """What is needed to put private branches into one particular model.

    Attributes:
        marking: What was marked, with the names of that model.
        layout: The layout that the bits were embedded with.
        tensors: Bottleneck of each site, by what they are.
    """

    marking: Marking
    layout: Layout
    tensors: tuple[Mapping[str, Tensor], ...]


@dataclass(frozen=True)
class Expectation:
    """What is expected of a suspect.

    Attributes:
        marking: What is said to be marked.
        tensors: Bottleneck of each site, by what they are: the claimant's choice (``paper`` only).
    """

    marking: Marking
    tensors: tuple[Mapping[str, Tensor], ...]

    @property
    def layout(self) -> Layout:
        """Where the bits lie."""
        return self.marking.layout

    @classmethod
    def from_claim(cls, claim: Claim) -> Expectation:
        """What a claim says."""
        return cls(claim.marking, tuple(claim.of_site(i) for i in range(len(claim.sites))))

    @classmethod
    def from_plan(
        cls, model: nn.Module | None, config: PassportConfig | None, example_inputs: Any
    ) -> Expectation:
        """What :func:`passportize.passportize` would do with a model and the default arguments.

        Args:
            model: The suspect.
            config: The formulation; by default ``keyed``, or ``signature`` without norms.
            example_inputs: As in :func:`passportize.plan`.

        Raises:
            InvalidArgument: There is no model.
            NoNormalization, TracingError: As in :func:`passportize.plan`.
        """
        if model is None:
            raise InvalidArgument(
                "verify: weights alone do not say where bits lie; give the claim, or a plain "
                "model of the architecture as model="
            )
        if config is None:
            # A model without norms can carry bits, but no private branch.
            config = PassportConfig.keyed() if find_norms(model) else PassportConfig.signature()
        planned = plan(
            model,
            config=config,
            example_inputs=example_inputs,
            include_frozen=True,
            check=False,
        )
        sites = tuple(site for site in planned.sites if site.role in (Role.BOUND, Role.STATISTICS))
        marking = Marking(config, sites, (config,) * len(sites), anchor_shapes(model, sites))
        return cls(marking, ({},) * len(sites))

    def place(self, model: nn.Module, found: Mapping[str, str]) -> Placement | str:
        """Where private branches go in a model, or the reason why that cannot be said.

        Args:
            model: A plain model.
            found: Its name for the weights that sites are bound to.
        """
        marking = self.marking
        if not marking.config.has_private_pass:
            return "the 'signature' preset has no private branch"
        for weight in marking.layout.weights:
            if weight not in found:
                return f"the suspect has no weight in the place of {weight}"
        names = _norm_names(marking, model, found)
        placed = []
        for site in marking.sites:
            name = names.get(site.name)
            norm = _submodule(model, name)
            if name is None or norm is None:
                return f"the suspect has no layer in the place of {site.name}"
            if adapter_of(norm) is None:
                return f"{name} is a {type(norm).__name__} in the suspect, not a known norm"
            placed.append(replace(site, name=name, anchor=_renamed(site.anchor, found)))
        shapes = {found[weight]: shape for weight, shape in marking.shapes.items()}
        there = replace(marking, sites=tuple(placed), shapes=shapes)
        return Placement(there, marking.layout, self.tensors)


def _submodule(model: nn.Module, name: str | None) -> nn.Module | None:
    try:
        return None if name is None else model.get_submodule(name)
    except AttributeError:
        return None


def _renamed(anchor: Anchor | None, found: Mapping[str, str]) -> Anchor | None:
    if anchor is None:
        return None
    parts = tuple(replace(part, weight=found[part.weight]) for part in anchor.parts)
    return replace(anchor, parts=parts)


def _norm_names(marking: Marking, model: nn.Module, found: Mapping[str, str]) -> dict[str, str]:
    """The model's name for the norm of every site.

    Names of weights that differ by a prefix are names of norms that do. Otherwise the model's own
    plan says which norm hangs on which weight; norms without one keep their names.
    """
    names = {site.name: site.name for site in marking.sites}
    cut = {_cut(weight, other) for weight, other in found.items()}
    if len(cut) == 1 and (only := next(iter(cut))) is not None:
        removed, added = only
        return {name: added + name.removeprefix(removed) for name in names}
    hanging = {
        _rows_of(site.anchor): site.name
        for site in plan(model, config=marking.config, include_frozen=True, check=False).sites
        if site.role is Role.BOUND
    }
    for site in marking.sites:
        if site.role is Role.BOUND:
            here = hanging.get(_rows_of(_renamed(site.anchor, found)))
            if here is None:
                del names[site.name]
            else:
                names[site.name] = here
    return names


def _rows_of(anchor: Anchor | None) -> tuple[tuple[str, int], ...]:
    return () if anchor is None else tuple((part.weight, part.start) for part in anchor.parts)


def _cut(name: str, other: str) -> tuple[str, str] | None:
    """The prefix that one name has more than the other, as what to remove and what to add."""
    if other.endswith(name):
        return "", other[: len(other) - len(name)]
    return (name[: len(name) - len(other)], "") if name.endswith(other) else None
