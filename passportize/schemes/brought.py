"""A private branch as claimants of the published schemes bring it: with tensors of their own.

Passports, bottlenecks and signature bits follow from no secret here, so whoever makes one can train
them. The branch runs without surgery: the model is called with other factors in the place of those
of its norms.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from passportize.config import PassportConfig
from passportize.errors import AnchorNotFound, DegenerateSite, InvalidArgument
from passportize.layers.private_branch import STATISTICS
from passportize.layers.switch import Switch
from passportize.layers.unregistered_norm import adapter_of
from passportize.passport.passport import Passport
from passportize.signature.marking import Marking
from passportize.signature.model_key import ModelKey
from passportize.signature.response import Responses, raw_responses, raw_sign_penalty
from passportize.signature.site import Role, Site
from passportize.signature.vectors import RawVectors
from passportize.surgery.branches import anchor_shapes, anchor_weights, make_branches
from passportize.surgery.planning import plan
from passportize.utils.trees import arguments_of, place_of

__all__ = ["BroughtBranch", "Factors", "factor_names", "fresh_statistics", "private_call"]

Factors = Mapping[str, tuple[Tensor, Tensor]]
"""Scale and shift of a private branch, each ``[channels]``, by the name of the norm."""


class BroughtBranch(nn.Module):
    """Passports, bottlenecks and bits for the norms of a model that they fit.

    Args:
        sites: The norms that get other factors, in order.
        passports: Gamma and beta vector of every part of every site's anchor, ``[entries, 2]`` or
            ``[groups, entries, 2]``.
        bottlenecks: The learnable map of every site; None for a scheme without, whose factors are
            the responses themselves.
        bits: The signature, -1 and +1, ``[bits]``.
    """

    bits: Tensor

    def __init__(
        self,
        sites: Sequence[Site],
        passports: Sequence[Sequence[Tensor]],
        bottlenecks: Sequence[nn.Module] | None,
        bits: Tensor,
    ) -> None:
        super().__init__()
        self.sites = tuple(sites)
        self.passports = nn.ModuleList(
            nn.ParameterList(nn.Parameter(part.detach().clone()) for part in parts)
            for parts in passports
        )
        self.bottlenecks = None if bottlenecks is None else nn.ModuleList(bottlenecks)
        self.register_buffer("bits", bits.detach().clone())

    @classmethod
    def drawn(
        cls, model: nn.Module, passport: Passport, bottleneck: bool, example_inputs: Any = None
    ) -> BroughtBranch:
        """Random passports and bits from a secret, for every norm that can be bound.

        Args:
            model: A plain model; it is only read.
            passport: Source of all that is drawn.
            bottleneck: Whether there are learnable maps.
            example_inputs: As in :func:`passportize.plan`.

        Raises:
            SurgeryError: The model has no norm that can be bound, or cannot be read.
            InvalidArgument: A norm has no scale, one for each channel.
        """
        config = PassportConfig.paper()
        planned = plan(
            model, config=config, example_inputs=example_inputs, include_frozen=True, check=False
        )
        sites = tuple(planned.role(Role.BOUND))
        if not sites:
            raise DegenerateSite(
                f"{type(model).__name__} has no norm that a passport could be bound to; "
                "plan(model).summary() says why"
            )
        for site in sites:
            factor_names(model, site.name)
        marking = Marking(config, sites, (config,) * len(sites), anchor_shapes(model, sites))
        key = ModelKey(passport, marking.layout)
        branches = make_branches(model, sites, key, marking.configs, Switch(config))
        maps = [branch.bottleneck for branch in branches if branch.bottleneck is not None]
        return cls(
            sites,
            [[side.values for side in branch.secret.sides] for branch in branches],  # type: ignore[union-attr]
            maps if bottleneck else None,
            torch.cat([branch.secret.bits for branch in branches]),
        ).to(place_of(model))

    def kept(self) -> BroughtBranch:
        """A copy that does not train: what is shown to a judge."""
        return copy.deepcopy(self).requires_grad_(False)

    def responses(self, model: nn.Module, index: int) -> Responses:
        """``u`` and ``v`` of one site, ``[channels]`` each, differentiable.

        Raises:
            AnchorNotFound: The model has no such weight, or it has too few rows.
            RuntimeError: Its rows have another length.
        """
        site, passports = self.sites[index], self.passports[index]
        assert site.anchor is not None and isinstance(passports, nn.ParameterList)
        rows = anchor_weights(model, site.anchor.parts).rows()
        return raw_responses(rows, [RawVectors(values) for values in passports])

    def factors(self, model: nn.Module) -> Factors:
        """Scale and shift of the private branch at every site."""
        found = {}
        for index, site in enumerate(self.sites):
            answers = self.responses(model, index)
            sides = (answers.gamma, answers.beta)
            if self.bottlenecks is not None:
                learned = self.bottlenecks[index]
                sides = (learned(answers.gamma), learned(answers.beta))
            found[site.name] = sides
        return found

    def sign_loss(self, model: nn.Module, margin: float = 0.1) -> Tensor:
        """``sum max(0, margin - b u)`` over all channels, a scalar."""
        parts = [
            raw_sign_penalty(self.responses(model, index), bits, margin)
            for index, bits in enumerate(self._bits())
        ]
        return torch.stack(parts).sum()

    @torch.no_grad()
    def matched(self, model: nn.Module) -> tuple[int, int]:
        """Bits that the weights carry, and bits that could be read; other sites are left out."""
        matched = total = 0
        for index, bits in enumerate(self._bits()):
            try:
                gamma = self.responses(model, index).gamma
            except (AnchorNotFound, RuntimeError):
                continue
            matched += int(((gamma >= 0) == (bits > 0)).sum())
            total += len(bits)
        return matched, total

    def _bits(self) -> Sequence[Tensor]:
        return torch.split(self.bits, [site.bits for site in self.sites])


def factor_names(model: nn.Module, norm: str) -> tuple[str, str]:
    """Full names of the parameters that a norm multiplies with and adds; the second may be empty.

    Raises:
        InvalidArgument: It has no scale of one number per channel that could be replaced.
    """
    module = model.get_submodule(norm)
    adapter = adapter_of(module)
    prefix = f"{norm}." if norm else ""
    scale = module._parameters.get(adapter.scale_name) if adapter is not None else None
    if adapter is None or scale is None or scale.dim() != 1:
        raise InvalidArgument(
            f"{norm}: the published schemes replace a scale of one number per channel, and this "
            f"{type(module).__name__} has none; leave such norms to 'keyed' or 'signature'"
        )
    shift = adapter.shift_name if module._parameters.get(adapter.shift_name) is not None else ""
    return prefix + adapter.scale_name, shift and prefix + shift


def private_call(
    model: nn.Module,
    inputs: Any,
    factors: Factors,
    statistics: Mapping[str, Tensor] | None = None,
) -> Any:
    """Call a plain model with other factors in its norms; gradients flow to these.

    Args:
        model: A plain model.
        inputs: A tensor, a tuple of positional or a dict of keyword arguments.
        factors: By name of the norm. A shift is left out where the norm has none.
        statistics: Buffers to be used in the place of the model's own, by their full names; in
            training mode they are written into.
    """
    replaced: dict[str, Tensor] = dict(statistics or {})
    for norm, (scale, shift) in factors.items():
        first, second = factor_names(model, norm)
        replaced[first] = scale.to(model.get_parameter(first).dtype)
        if second:
            replaced[second] = shift.to(model.get_parameter(second).dtype)
    args, kwargs = arguments_of(inputs)
    return functional_call(model, replaced, args, kwargs)


def fresh_statistics(model: nn.Module, norms: Sequence[str]) -> dict[str, Tensor]:
    """Copies of the running statistics of some norms, by their full names.

    Args:
        model: A plain model.
        norms: Names of norms; those without statistics are left out.
    """
    buffers = dict(model.named_buffers())
    names = [f"{norm}.{name}" if norm else name for norm in norms for name in STATISTICS]
    return {name: buffers[name].detach().clone() for name in names if name in buffers}
