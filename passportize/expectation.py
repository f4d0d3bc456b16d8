"""What is claimed about a suspect: by a claim, or by the plan of the suspect itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from passportize.binding import anchor_shapes
from passportize.claim import Claim
from passportize.config import PassportConfig
from passportize.errors import InvalidArgument
from passportize.layout import Layout, anchor_of
from passportize.matching import TensorMatch, match_tensors
from passportize.norms import find_norms
from passportize.placement import PrivateBranch, place_sites
from passportize.planning import plan
from passportize.site import Role, Site
from passportize.weights_digest import structure_of

__all__ = ["Expectation"]


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
        decisive = {part.weight for site in self.layout.sites for part in anchor_of(site).parts}
        return match_tensors(self.structure, structure_of(tensors), names=names, decisive=decisive)

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
