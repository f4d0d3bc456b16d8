"""Private scale and shift of ``keyed``: of one norm, with a short gradient, and of all at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from passportize.layers.layer import PassportLayer

__all__ = ["KeyedFactors", "Ready", "ready_factors"]


class Ready(NamedTuple):
    """Values of a norm's private factors, and what they were computed from."""

    scale: Tensor
    shift: Tensor | None
    private_scale: Tensor
    private_shift: Tensor | None

    def fits(self, scale: Tensor, shift: Tensor | None) -> bool:
        """Whether these very tensors are what the factors were computed from."""
        return self.scale is scale and self.shift is shift


class KeyedFactors(torch.autograd.Function):
    """``scale gamma`` and ``shift + k scale beta``, with a gradient of two operations.

    Args (of ``apply``):
        scale, shift: Of the host; the shift may be None, and so is the private one then.
        gamma, beta: Constants, in the shape of the scale.
        k: Number.
        ready: The values, where they are known.
    """

    @staticmethod
    def forward(
        ctx: Any,
        scale: Tensor,
        shift: Tensor | None,
        gamma: Tensor,
        beta: Tensor,
        k: float,
        ready: Ready | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The private scale and shift."""
        ctx.save_for_backward(gamma, beta)
        ctx.k, ctx.shifts = k, shift is not None
        if ready is not None:
            # A second call, as checkpointing makes it, must not meet the first one's history.
            moved = ready.private_shift
            return ready.private_scale.detach(), None if moved is None else moved.detach()
        if shift is None:
            return scale * gamma, None
        return scale * gamma, torch.addcmul(shift, scale, beta, value=k)

    @staticmethod
    def backward(
        ctx: Any, scale_gradient: Tensor, shift_gradient: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Gradients of the host's scale and shift."""
        gamma, beta = ctx.saved_tensors
        gradient = scale_gradient * gamma
        if ctx.shifts and shift_gradient is not None:
            gradient = torch.addcmul(gradient, shift_gradient, beta, value=ctx.k)
        return gradient, shift_gradient if ctx.shifts else None, None, None, None, None


@torch.no_grad()
def ready_factors(
    layers: Iterable[PassportLayer], factors: Mapping[str, tuple[Tensor, Tensor]]
) -> dict[str, Ready]:
    """The values of the private factors of many norms in two operations.

    Args:
        layers: Norms; those whose factors have another shape or dtype than the responses compute
            theirs by themselves.
        factors: ``tanh(q u)`` and ``tanh(v)`` by name of the site.
    """
    alike: dict[
        tuple[torch.device, torch.dtype, int, float], list[tuple[str, Tensor, Tensor | None]]
    ] = defaultdict(list)
    for layer in layers:
        name = layer.passport.site.name
        scale = getattr(layer, layer.scale_name, None)
        shift = getattr(layer, layer.shift_name, None)
        if name not in factors or not isinstance(scale, Tensor):
            continue
        like = factors[name][0]
        both = (scale,) if shift is None else (scale, shift)
        if all(_alike(side, like) for side in both):
            k = layer.passport.config.shift_scale
            alike[like.device, like.dtype, len(both), k].append((name, scale, shift))
    found = {}
    for (*_, count, k), norms in alike.items():
        names, scales, shifts = zip(*norms, strict=True)
        gammas, betas = zip(*(factors[name] for name in names), strict=True)
        moved: Any = [None] * len(names)
        if count == 2:
            moved = torch._foreach_addcmul(shifts, scales, betas, k)
        for each in zip(
            names, scales, shifts, torch._foreach_mul(scales, gammas), moved, strict=True
        ):
            found[each[0]] = Ready(*each[1:])
    return found


def _alike(side: Tensor, like: Tensor) -> bool:
    return (
        not hasattr(side, "device_mesh")
        and side.untyped_storage().size() > 0
        and (side.shape, side.dtype, side.device) == (like.shape, like.dtype, like.device)
    )
