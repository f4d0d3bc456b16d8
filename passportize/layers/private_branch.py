"""The private branch of one norm: response, scale, shift and running statistics of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from passportize.config import PassportConfig
from passportize.errors import BranchLost
from passportize.layers.computed import effective_weight
from passportize.layers.keyed_factors import KeyedFactors
from passportize.layers.own_methods import OwnMethods
from passportize.layers.switch import Switch
from passportize.signature.formulations import Formulation, formulation_of
from passportize.signature.response import Responses
from passportize.signature.rows import anchor_rows
from passportize.signature.site import AnchorPart, Role, Site
from passportize.signature.vectors import SecretVectors, SignVectors, Vectors

__all__ = ["STATISTICS", "AnchorWeights", "Branch", "has_statistics"]

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def has_statistics(norm: nn.Module) -> bool:
    """Whether a norm keeps running statistics."""
    return isinstance(getattr(norm, "running_mean", None), Tensor) and isinstance(
        getattr(norm, "running_var", None), Tensor
    )


class AnchorWeights:
    """Live access to the weights that a site is bound to.

    Holds the modules that own them, not the tensors, so that it follows parametrizations, pruning,
    sharding and deep copies; a plain object, so that the modules are not registered twice.
    """

    def __init__(self, owners: list[tuple[nn.Module, str, AnchorPart]]) -> None:
        self.owners = owners

    def rows(self) -> list[Tensor]:
        """Rows of each part, ``[channels_i, fan_in_i]``."""
        return [
            anchor_rows(effective_weight(module, attribute), part)
            for module, attribute, part in self.owners
        ]

    def windows(self, sides: Sequence[Vectors]) -> list[Tensor]:
        """The entries of each part's rows that answer to vectors, ``[rows_i, entries_i]``.

        Raises:
            BranchLost: A weight was resized after surgery.
        """
        found = []
        for (module, attribute, part), side in zip(self.owners, sides, strict=True):
            weight = effective_weight(module, attribute)
            rows = side.picked(anchor_rows(weight, part, side.window))
            check_rows(rows, side, part, weight)
            found.append(rows)
        return found


def check_rows(rows: Tensor, vectors: Vectors, part: AnchorPart, weight: Tensor) -> None:
    """See that rows are as long as the vectors that they answer to.

    Raises:
        BranchLost: The weight was resized after surgery.
    """
    if rows.shape[1] != vectors.entries:
        raise BranchLost(
            f"{part.weight} has the shape {tuple(weight.shape)}, whose rows do not fit their "
            "vectors; change sizes first and passportize then"
        )


class Branch(nn.Module):
    """Submodule ``passport`` of a two-branch layer.

    Args:
        site: The norm it belongs to.
        config: Formulation and margins for this site.
        switch: The state shared by all layers of the model.
        host: The norm; its running statistics, if any, are copied as a start.
        weights: Access to the anchor; None for sites that only keep statistics.
        secret: Passport vectors and bits; None likewise.
        generator: Source of the bottleneck's initial values (``paper`` only). Derived from the
            passport, so that the model's random stream and other processes are not disturbed.

    """

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        site: Site,
        config: PassportConfig,
        switch: Switch,
        host: nn.Module,
        weights: AnchorWeights | None = None,
        secret: SecretVectors | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.site = site
        self.config = config
        self.switch = switch
        self.weights = weights
        self.secret = secret or SecretVectors()
        self.bottleneck: nn.Sequential | None = None
        self.parts: list[tuple[int, int]] = []
        self.own_methods = OwnMethods(host)
        for name in STATISTICS:
            value = getattr(host, name, None)
            self.register_buffer(
                name,
                value.detach().clone() if value is not None else None,
                # In a state dict beside the host's own or not at all, see `private_keys`.
                persistent=name not in host._non_persistent_buffers_set,
            )
        if self.bound and weights is not None:
            rows = weights.rows()
            like = rows[0]
            if config.has_bottleneck:
                self.bottleneck = _bottleneck(site.channels, config.bottleneck, like, generator)
            self.parts = [
                (len(side.picked(part)), side.entries)
                for part, side in zip(rows, self.secret.sides, strict=True)
            ]
            self.secret = self.secret.to(like.device)
        self.train(host.training)

    @property
    def bound(self) -> bool:
        """Whether this branch is bound to a weight, or keeps statistics only."""
        return self.site.role is Role.BOUND

    @property
    def formulation(self) -> Formulation:
        """How the rows answer."""
        return formulation_of(self.config)

    @property
    def transforms(self) -> bool:
        """Whether the private scale and shift differ from the public ones."""
        return self.bound and self.config.has_private_pass

    def responses(self) -> Responses:
        """Gamma and beta responses of every channel.

        Raises:
            PassportLocked: The branch was loaded without its secret.
        """
        bits = self.secret.bits
        assert self.weights is not None
        with torch.autocast(device_type=bits.device.type, enabled=False):
            sides = self.secret.sides
            return self.formulation.respond(self.weights.windows(sides), sides)

    @torch.no_grad()
    def matched(self) -> int:
        """Signature bits that the weights carry now; 0 for sites without bits.

        Raises:
            PassportLocked: The branch was loaded without its secret.
        """
        if not self.bound:
            return 0
        return int(((self.responses().gamma >= 0) == (self.secret.bits > 0)).sum())

    def forward(
        self, scale: Tensor | None, shift: Tensor | None, like: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Private scale and shift, and the penalty that embeds the bits.

        Args:
            scale: The host's public scale, or None.
            shift: The host's public shift, or None.
            like: Tensor whose dtype the result takes where the host has no scale (float32 if None).

        Returns:
            Scale and shift in the shape and dtype of the public ones, and a scalar in at least
            float32; None for what does not exist or, as the penalty may be, is not due.

        Raises:
            PassportLocked: The branch was loaded without its secret.
        """
        if not self.bound:
            return scale, shift, None
        known = self.switch.known(self.site.name)
        penalty = None
        if known is None:
            constant = self.switch.responses_constant
            with torch.set_grad_enabled(torch.is_grad_enabled() and not constant):
                responses = self.responses()
            penalty = None if constant else self._penalty(responses)
            known = responses.gamma, responses.beta
            if self.bottleneck is None:
                turned = responses.gamma.detach() * self._turns(responses.gamma.dtype)
                known = torch.tanh(turned), torch.tanh(responses.beta.detach())
        if not self.transforms:
            return scale, shift, penalty
        gamma, beta = known
        with torch.autocast(device_type=gamma.device.type, enabled=False):
            if self.bottleneck is None:
                private_scale, private_shift = self._keyed(gamma, beta, scale, shift)
            else:
                sides = torch.stack([gamma, beta])
                learned = self.bottleneck(sides.to(next(self.bottleneck.parameters()).dtype))
                shape = learned.shape[1:] if scale is None else scale.shape
                private_scale, private_shift = (self.spread(side, shape) for side in learned)
        reference = scale if scale is not None else like
        dtype = private_scale.dtype if reference is None else reference.dtype
        if shift is None and scale is not None:
            private_shift = None
        kept = None if private_shift is None else private_shift.to(dtype)
        return private_scale.to(dtype), kept, penalty

    def _turns(self, dtype: torch.dtype) -> Tensor:
        """``q``, see :meth:`~passportize.signature.vectors.SignVectors.turns`."""
        sides = [side for side in self.secret.sides if isinstance(side, SignVectors)]
        return torch.cat([side.turns(dtype) for side in sides])

    def _penalty(self, responses: Responses) -> Tensor:
        config = self.config
        bits = self.secret.bits.to(responses.gamma.dtype)
        penalty = self.formulation.penalty(responses, bits, config.margin, self.parts)
        penalty = config.sign_weight * penalty
        if config.response_weight:
            penalty = penalty + config.response_weight * responses.gamma.square().sum()
        return penalty

    def _keyed(
        self, gamma: Tensor, beta: Tensor, scale: Tensor | None, shift: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """``scale1 = scale0 tanh(q u)``, ``shift1 = shift0 + k scale0 tanh(v)``: nothing is free.

        ``tanh(q u)`` and ``tanh(v)`` are constants here: the sign loss alone moves the responses.

        Both are multiples of the public scale, ``u`` is even in the weight and ``v`` odd, so a
        thief's rescaling or sign flip of a channel cancels in the private branch wherever it
        cancels in the public one. The bounded function keeps the private branch as well
        conditioned as the public one, however large the margin.
        """
        moved = self.config.shift_scale
        if scale is None:
            return gamma, moved * beta
        gamma, beta = self.spread(gamma, scale.shape), self.spread(beta, scale.shape)
        ready = self.switch.ready(self.site.name, scale, shift)
        scale = scale.to(gamma.dtype)
        shift = None if shift is None else shift.to(gamma.dtype)
        if torch.compiler.is_compiling():
            private_shift = None
            if shift is not None:
                private_shift = torch.addcmul(shift, scale, beta, value=moved)
            return scale * gamma, private_shift
        private: tuple[Tensor, Tensor | None] = KeyedFactors.apply(  # type: ignore[no-untyped-call]
            scale, shift, gamma, beta, moved, ready
        )
        return private

    def spread(self, side: Tensor, shape: Sequence[int]) -> Tensor:
        """One value per channel, ``[channels]``, laid out in an affine shape of several axes."""
        if len(shape) <= 1:
            return side
        layout = [1] * len(shape)
        layout[self.site.channel_axis] = -1
        return side.reshape(layout).expand(tuple(shape))

    def reset_statistics(self) -> None:
        """Begin the running statistics anew, as those of a fresh norm."""
        for name, start in zip(STATISTICS, (0, 1, 0), strict=True):
            buffer = getattr(self, name)
            if buffer is not None:
                buffer.fill_(start)

    def fill_in(self, state_dict: dict[str, Any], prefix: str) -> None:
        """Let plain weights load strictly: private statistics start from those of the norm.

        Args:
            state_dict: What is being loaded into the norm; changed in place.
            prefix: Of the norm's keys.
        """
        own = f"{prefix}passport."
        if any(key.startswith(own) for key in state_dict):
            return
        for name in STATISTICS:
            value = state_dict.get(prefix + name)
            if name not in self._non_persistent_buffers_set and isinstance(value, Tensor):
                # A copy, or load_state_dict(assign=True) would make them one.
                state_dict[own + name] = value.clone()
        if "counter" in self._modules:
            state_dict[f"{own}counter._extra_state"] = torch.tensor(self.switch.step)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Branch:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if not self.secret.locked:
            moved = fn(torch.empty(0, device=self.secret.device))
            self.secret = self.secret.to(moved.device)
        return self

    def extra_repr(self) -> str:
        """Formulation and number of bits, never the secret."""
        if not self.bound:
            return "statistics only"
        return f"{self.config.formulation}, {self.site.bits} bits"


def _bottleneck(
    channels: int, factor: int, like: Tensor, generator: torch.Generator | None
) -> nn.Sequential:
    """The published h: two linear maps without bias around a LeakyReLU, shared by both sides."""
    hidden = max(1, channels // factor)
    first, second = (
        nn.utils.skip_init(  # type: ignore[no-untyped-call]
            nn.Linear, inputs, outputs, bias=False, device=like.device, dtype=like.dtype
        )
        for inputs, outputs in ((channels, hidden), (hidden, channels))
    )
    for linear in (first, second):
        if linear.weight.is_meta:
            continue
        bound = 1 / math.sqrt(linear.in_features)
        values = torch.empty(linear.weight.shape, device="cpu").uniform_(
            -bound, bound, generator=generator
        )
        with torch.no_grad():
            linear.weight.copy_(values)
    return nn.Sequential(first, nn.LeakyReLU(0.01), second)
