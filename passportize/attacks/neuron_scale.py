"""Rescaled and mirrored channels (NeuronScale and SignFlip, KDD 2023), where nothing sees it.

Wherever the way from the layer that makes a channel to those that read it is positively homogeneous
(ReLU, pooling, sums), the channel can be multiplied with a factor where it is made and its weights
divided by it where it is read; where the way is linear, the factor can be negative. Where it is odd
(tanh, a norm that takes the length away, products of queries and keys), the sign alone can change,
in a centred norm that of all its channels at once. With factors
over several decades a row of the reader answers to a few of its entries only, so that the
responses of its rows are scrambled although each row is read without regard to its own scale.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from passportize.alignment.axes import FIXED, Axis
from passportize.alignment.tied_channels import TiedChannels, find_tied_channels
from passportize.attacks.attack import Attacked, Means, register_attack
from passportize.attacks.descent import example_of
from passportize.errors import InvalidArgument
from passportize.tracing.unchanged import FunctionCheck

__all__ = ["scale_neurons"]


@torch.no_grad()
def scale_neurons(
    model: nn.Module,
    generator: torch.Generator | None = None,
    *,
    decades: float = 2.0,
    flip: float = 0.0,
    example_inputs: Any = None,
) -> int:
    """Rescale channels at random, in place; the model computes what it did before.

    Args:
        model: A plain model.
        generator: Source of the random choices.
        decades: Factors are ``10 ** x`` with ``x`` uniform between ``-decades`` and ``decades``;
            0 leaves all sizes.
        flip: Share of channels to mirror as well, among those where a sign cancels.
        example_inputs: What to call the model with, as in :func:`passportize.plan`; timm models
            need none.

    Returns:
        The number of channels that were rescaled or mirrored; 0 if the output on the example
        inputs changed, and all was put back.

    Raises:
        InvalidArgument: An argument is out of range.
        TracingError: The model cannot be read.
    """
    if not 0.0 <= decades <= 6.0 or not 0.0 <= flip <= 1.0:
        raise InvalidArgument(
            f"scale_neurons: decades={decades!r} must lie in [0, 6] and flip={flip!r} in [0, 1]"
        )
    check = FunctionCheck(model, example_inputs)
    tied = find_tied_channels(model, example_inputs)
    tensors = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    used = {axis.tensor for axis in tied.axes}
    before = {name: tensor.clone() for name, tensor in tensors.items() if name in used}
    stabilisers = _stabilisers(model)
    factors = _factors(tied, tensors, stabilisers, generator, decades, flip)
    for axis in tied.axes:
        _multiply(axis, tensors[axis.tensor], factors, stabilisers.get(axis.tensor, 0.0))
    if check.changed(model):
        for name, tensor in before.items():
            tensors[name].copy_(tensor)
        return 0
    return int((factors[torch.unique(torch.cat([axis.atoms for axis in tied.axes]))] != 1).sum())


def _factors(
    tied: TiedChannels,
    tensors: dict[str, Tensor],
    stabilisers: dict[str, float],
    generator: torch.Generator | None,
    decades: float,
    flip: float,
) -> Tensor:
    """A factor for every atom, float64; 1 where none is free."""
    count = len(tied.free)
    exponents = torch.rand(count, generator=generator, dtype=torch.float64) * 2 - 1
    sizes = torch.pow(torch.tensor(10.0, dtype=torch.float64), exponents * decades)
    drawn = torch.rand(len(tied.mirrors), generator=generator, dtype=torch.float64) < flip
    mirrored = drawn[tied.mirrors] & (tied.mirrors != tied.mirrors[FIXED])
    for axis in tied.axes:
        if axis.role == "variance":
            # A variance cannot fall below zero, so with eps there is a smallest factor.
            eps = stabilisers.get(axis.tensor, 0.0)
            spread = tensors[axis.tensor].detach().double().cpu()
            spread = spread.narrow(0, axis.first, len(axis.atoms))
            least = (1.01 * eps / (spread + eps).clamp_min(1e-30)).sqrt()
            classes = tied.scales[axis.atoms]
            sizes[classes] = torch.maximum(sizes[classes], least)
    sizes = torch.where(tied.free, sizes, 1.0)
    return tied.times(torch.where(mirrored, -1.0, 1.0) * sizes[tied.scales])


def _stabilisers(model: nn.Module) -> dict[str, float]:
    """``eps`` of every norm with running statistics, by the name of its variance."""
    return {
        f"{name}.running_var" if name else "running_var": float(getattr(module, "eps", 0.0))
        for name, module in model.named_modules()
        if isinstance(getattr(module, "running_var", None), Tensor)
    }


def _multiply(axis: Axis, tensor: Tensor, factors: Tensor, eps: float) -> None:
    if axis.role in ("head", "whole"):
        return
    part = axis.of(tensor)
    own = factors[axis.atoms]
    if axis.role == "columns":
        own = 1.0 / own
    elif axis.role == "scale" and axis.inputs is not None:
        own = own * factors[axis.inputs].sign()
    if bool((own == 1).all()):
        return
    exact = axis.spread(own, tensor).to(part.device)
    if axis.role == "variance":
        part.copy_(((part.double() + eps) * exact.square() - eps).clamp_min(0))
    else:
        part.copy_(part.double() * exact)


@register_attack(
    "neuron-scale",
    kind="removal",
    source="Cracking White-box DNN Watermarks via Invariant Neuron Transforms, KDD 2023",
    expected="costs bits of rows that read a rescaled channel; undone with the released weights",
)
def _attack(model: nn.Module, means: Means, *, decades: float = 2.0, flip: float = 0.5) -> Attacked:
    """Channels rescaled and mirrored across layers; no output changes (NeuronScale, SignFlip)."""
    done = scale_neurons(
        model,
        torch.Generator().manual_seed(means.seed),
        decades=decades,
        flip=flip,
        example_inputs=example_of(model, means),
    )
    if not done:
        raise InvalidArgument(f"neuron-scale: {type(model).__name__} has no channel to rescale")
    return Attacked(figures={"channels rescaled": done})
