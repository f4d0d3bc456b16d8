"""What is claimed about a suspect: by a claim, or by the plan of the suspect itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from passportize.config import PassportConfig
from passportize.errors import InvalidArgument
from passportize.layers.unregistered_norm import adapter_of
from passportize.release.claim import Claim
from passportize.signature.layout import Layout
from passportize.signature.matching import TensorMatch, match_layout, structure_of
from passportize.signature.site import Anchor, Role, Site
from passportize.surgery.attach import anchor_shapes
from passportize.surgery.norms import find_norms
from passportize.surgery.planning import plan

__all__ = ["Expectation", "PrivateBranch", "place_sites"]


@dataclass(frozen=True)
class Expectation:
    """What is expected of a suspect.

    Attributes:
        sites: Bound sites and those with private statistics.
        configs: The formulation of each.
        config: The model-wide formulation.
        layout: Where the bits lie.
        structure: Names and shapes of the released tensors.
        tensors: For every site its private statistics and bottleneck, by what they are.
    """

    sites: tuple[Site, ...]
    configs: tuple[PassportConfig, ...]
    config: PassportConfig
    layout: Layout
    structure: tuple[tuple[str, tuple[int, ...]], ...]
    tensors: tuple[Mapping[str, Tensor], ...]

    @classmethod
    def from_claim(cls, claim: Claim) -> Expectation:
        """What a claim says."""
        return cls(
            claim.sites,
            claim.configs,
            claim.config,
            claim.layout,
            claim.structure,
            tuple(claim.of_site(index) for index in range(len(claim.sites))),
        )

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
        planned = plan(model, config=config, example_inputs=example_inputs, include_frozen=True)
        sites = tuple(site for site in planned.sites if site.role in (Role.BOUND, Role.STATISTICS))
        configs = (config,) * len(sites)
        layout = Layout.of(sites, configs, anchor_shapes(model, sites))
        structure = structure_of(model.state_dict())
        return cls(sites, configs, config, layout, structure, ({},) * len(sites))

    def match(self, tensors: Mapping[str, Tensor], names: bool) -> TensorMatch:
        """What stands for the claimed tensors among these."""
        return match_layout(self.layout, self.structure, tensors, names)

    def private_branch(self, model: nn.Module, names: bool) -> PrivateBranch | str:
        """What to put back into a model, or the reason why that cannot be done.

        Args:
            model: A plain model.
            names: As in :meth:`match`.
        """
        if not self.config.has_private_pass:
            return "the 'signature' preset has no private branch"
        # The module may be a copy of model=, with other names than the suspect's file.
        match = self.match(model.state_dict(), names)
        placed = place_sites(self.sites, self.structure, match, model)
        if isinstance(placed, str):
            return placed
        return PrivateBranch(placed, self.configs, self.config, self.layout, self.tensors)


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
