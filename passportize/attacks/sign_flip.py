"""Channel sign flips and rescaling: a disguise that leaves the network's function as it is.

For a norm with statistics per channel and the weight that feeds it, the row, the bias, the running
mean and the scale of a channel can all change sign: the norm's input is mirrored and mirrored back.
The published signature, ``sign(W s)``, falls to chance without any data or knowledge of a passport.
A row can be rescaled likewise.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from passportize.attacks.attack import Attacked, Means, register_attack
from passportize.attacks.descent import example_of
from passportize.config import PassportConfig
from passportize.errors import InvalidArgument
from passportize.layers.private_branch import has_statistics
from passportize.layers.unregistered_norm import adapter_of
from passportize.signature.site import AnchorPart, Role, Site
from passportize.surgery.planning import plan
from passportize.tracing.unchanged import FunctionCheck

__all__ = ["DisguisedSite", "flip_channel_signs"]


@dataclass(frozen=True)
class DisguisedSite:
    """One norm and the weight that feeds it, disguised.

    Attributes:
        norm: Name of the norm.
        weight: Name of the weight.
        factors: What each row was multiplied with, float64 ``[channels]``.
    """

    norm: str
    weight: str
    factors: Tensor

    @property
    def flipped(self) -> int:
        """Channels that changed sign."""
        return int((self.factors < 0).sum())


def flip_channel_signs(
    model: nn.Module,
    generator: torch.Generator | None = None,
    share: float = 0.5,
    *,
    rescale: float = 1.0,
    example_inputs: Any = None,
) -> list[DisguisedSite]:
    """Flip the signs of random channels, in place; the model computes what it did before.

    Touched is every norm with a scale and statistics per channel (BatchNorm, InstanceNorm; for
    GroupNorm whole groups) that a convolution or linear layer feeds directly, if that layer feeds
    nothing else: a flip that changes the output on the example inputs, or on noise of the size
    that the model names, is taken back.

    Args:
        model: A plain model.
        generator: Source of the random choices.
        share: Share of channels (groups) to flip, between 0 and 1.
        rescale: Rows of BatchNorm sites are also multiplied with random factors between
            ``1 / rescale`` and ``rescale``; 1 for none.
        example_inputs: What to call the model with, as in :func:`passportize.plan`; timm models
            need none.

    Returns:
        What was done, one entry per norm.

    Raises:
        InvalidArgument: A share outside [0, 1], or a factor below 1.
        SurgeryError: The model cannot be read.
    """
    if not 0.0 <= share <= 1.0 or not 1.0 <= rescale < math.inf:
        raise InvalidArgument(
            f"flip_channel_signs: share={share!r} must lie in [0, 1] and rescale={rescale!r} be a "
            "finite factor of at least 1"
        )
    check = FunctionCheck(model, example_inputs)
    planned = plan(
        model,
        config=PassportConfig.signature(),
        example_inputs=example_inputs,
        include_frozen=True,
    )
    users = Counter(
        part.weight
        for site in planned.role(Role.BOUND)
        for part in (site.anchor.parts if site.anchor is not None else ())
    )
    done = []
    for site in planned.role(Role.BOUND):
        part = _direct(model, site)
        if part is None or users[part.weight] > 1:
            continue
        norm = model.get_submodule(site.name)
        factors = _factors(norm, site.channels, generator, share, rescale)
        _multiply(model, norm, part, factors)
        if check.changed(model):
            _multiply(model, norm, part, 1.0 / factors)
            continue
        done.append(DisguisedSite(site.name, part.weight, factors))
    return done


def _direct(model: nn.Module, site: Site) -> AnchorPart | None:
    """The one weight that feeds a norm directly, if sign flips cancel between the two."""
    norm = model.get_submodule(site.name)
    adapter = adapter_of(norm)
    anchor = site.anchor
    if adapter is None or anchor is None or not adapter.sign_follows_scale:
        return None
    scale = getattr(norm, adapter.scale_name, None)
    if not isinstance(scale, Tensor) or scale.numel() != site.channels:
        return None
    part = anchor.parts[0]
    whole = len(anchor.parts) == 1 and part.start == 0 and part.repeats == 1
    if not whole or anchor.crossed or part.axis != "output":
        return None
    weight = model.get_parameter(part.weight)
    rows = weight.shape[1] * part.groups if part.transposed else weight.shape[0]
    return part if rows == site.channels else None


def _factors(
    norm: nn.Module,
    channels: int,
    generator: torch.Generator | None,
    share: float,
    rescale: float,
) -> Tensor:
    groups = int(getattr(norm, "num_groups", channels))
    drawn = torch.rand(groups, generator=generator, dtype=torch.float64)
    factors = torch.where(drawn < share, -1.0, 1.0).to(torch.float64)
    factors = factors.repeat_interleave(channels // groups)
    if rescale > 1.0 and has_statistics(norm):
        exponents = torch.rand(channels, generator=generator, dtype=torch.float64) * 2 - 1
        factors = factors * torch.pow(torch.tensor(rescale, dtype=torch.float64), exponents)
    return factors


@torch.no_grad()
def _multiply(model: nn.Module, norm: nn.Module, part: AnchorPart, factors: Tensor) -> None:
    weight = model.get_parameter(part.weight)
    owner = model.get_submodule(part.weight.rpartition(".")[0])
    exact = factors.to(weight.device)
    if part.transposed:
        # [in, out / groups, ...]: the output channels of a group lie along dim 1.
        split = weight.view(part.groups, -1, *weight.shape[1:])
        layout = (part.groups, 1, weight.shape[1]) + (1,) * (weight.dim() - 2)
        split.mul_(exact.view(layout).to(weight.dtype))
    else:
        weight.mul_(exact.view(-1, *(1,) * (weight.dim() - 1)).to(weight.dtype))
    bias = getattr(owner, "bias", None)
    if isinstance(bias, Tensor):
        bias.mul_(exact.to(bias.dtype))
    if has_statistics(norm):
        mean, var = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
        eps = float(getattr(norm, "eps", 0.0))
        mean.mul_(exact.to(mean.dtype))
        var.copy_(((var.double() + eps) * exact.square() - eps).clamp_min(0))
    adapter = adapter_of(norm)
    assert adapter is not None
    scale = norm.get_parameter(adapter.scale_name)
    scale.mul_(exact.sign().to(scale.dtype).view(scale.shape))


@register_attack(
    "sign-flip",
    kind="removal",
    source="Cracking White-box DNN Watermarks via Invariant Neuron Transforms, KDD 2023",
    expected="erases 'paper' and 'deepipr'; responses of 'keyed' and 'signature' are even in a row",
)
def _attack(
    model: nn.Module, means: Means, *, share: float = 0.5, rescale: float = 1.0
) -> Attacked:
    """Signs of channels flipped between weight and norm; no output changes."""
    done = flip_channel_signs(
        model,
        torch.Generator().manual_seed(means.seed),
        share,
        rescale=rescale,
        example_inputs=example_of(model, means),
    )
    if not done:
        raise InvalidArgument(
            f"sign-flip: in {type(model).__name__} no norm with a scale follows a weight directly"
        )
    return Attacked(figures={"channels flipped": sum(site.flipped for site in done)})
