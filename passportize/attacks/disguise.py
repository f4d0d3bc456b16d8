"""The strongest disguise: a random element of every symmetry of a model, and its outputs stay.

Whatever :func:`passportize.alignment.tied_channels.find_tied_channels` knows to be possible is done
at once: a random matrix on every space of channels that have no meaning of their own (residual
streams, linear bottlenecks, values, queries and keys of every head), heads and all other channels
permuted, groups of convolutions and norms exchanged, channels rescaled and mirrored. It takes no
data, no training and a few seconds. Rotations of residual streams are in SliceGPT (ICLR 2024),
those inside heads in AWM (ICLR 2026), permutations, scales and signs in "Cracking White-box DNN
Watermarks via Invariant Neuron Transforms" (KDD 2022).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from passportize.alignment.axes import Diagonal
from passportize.alignment.folding import act
from passportize.alignment.spaces import MatrixKind, MatrixSpace, Side, fold_factors
from passportize.alignment.tied_channels import TiedChannels, find_tied_channels
from passportize.attacks.attack import Attacked, Means, register_attack
from passportize.attacks.descent import example_of
from passportize.attacks.neuron_scale import scale_neurons
from passportize.attacks.permutation import permute_channels
from passportize.errors import InvalidArgument
from passportize.tracing.unchanged import FunctionCheck

__all__ = ["Disguise", "disguise", "mix_channels", "random_element"]


@dataclass(frozen=True)
class Disguise:
    """What :func:`disguise` has done.

    Attributes:
        mixed: Channels that a random matrix was put on, heads counted one by one.
        permuted: Groups of channels or heads, or of whole groups, that were permuted.
        scaled: Channels that were rescaled or mirrored.
    """

    mixed: int
    permuted: int
    scaled: int


def disguise(
    model: nn.Module,
    generator: torch.Generator | None = None,
    *,
    condition: float = 10.0,
    decades: float = 1.0,
    flip: float = 0.5,
    example_inputs: Any = None,
) -> Disguise:
    """Put a random element of every symmetry on a model, in place.

    Args:
        model: A plain model, in evaluation mode.
        generator: Source of the random choices.
        condition: Of the invertible matrices, where more than rotations may act.
        decades: As in :func:`~passportize.attacks.neuron_scale.scale_neurons`.
        flip: Likewise.
        example_inputs: What to call the model with, as in :func:`passportize.plan`; timm models
            need none.

    Raises:
        InvalidArgument: An argument is out of range.
        TracingError: The model cannot be read.
    """
    mixed = mix_channels(model, generator, condition=condition, example_inputs=example_inputs)
    permuted = permute_channels(model, generator, example_inputs=example_inputs)
    scaled = scale_neurons(
        model, generator, decades=decades, flip=flip, example_inputs=example_inputs
    )
    return Disguise(mixed, len(permuted), scaled)


@torch.no_grad()
def mix_channels(
    model: nn.Module,
    generator: torch.Generator | None = None,
    *,
    condition: float = 10.0,
    example_inputs: Any = None,
) -> int:
    """Put a random matrix on every space of a model, in place.

    Args:
        model: A plain model, in evaluation mode.
        generator: Source of the matrices.
        condition: Largest over smallest singular value of those that need be no rotations.
        example_inputs: As in :func:`passportize.plan`.

    Returns:
        The number of channels that were mixed; a space whose matrix changes an output on the
        example inputs is put back.

    Raises:
        InvalidArgument: ``condition`` is below 1.
        TracingError: The model cannot be read.
    """
    if not condition >= 1.0:
        raise InvalidArgument(f"mix_channels: condition={condition!r} must be at least 1")
    check = FunctionCheck(model, example_inputs)
    tied = find_tied_channels(model, example_inputs)
    tensors = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    mixed = 0
    for space in tied.spaces:
        names = {tied.axes[side.axis].tensor for side in space.sides}
        names |= {name for diagonal in space.diagonals for name in diagonal.tensors.values()}
        before = {name: tensors[name].clone() for name in names}
        _mix(space, tied, tensors, generator, condition)
        if check.changed(model):
            for name, tensor in before.items():
                tensors[name].copy_(tensor)
        else:
            mixed += space.size * space.blocks
    return mixed


def _mix(
    space: MatrixSpace,
    tied: TiedChannels,
    tensors: Mapping[str, Tensor],
    generator: torch.Generator | None,
    condition: float,
) -> None:
    matrices = torch.stack(
        [random_element(space.kind, space.size, generator, condition) for _ in range(space.blocks)]
    )
    inverses = torch.linalg.inv(matrices).transpose(1, 2)
    factors = fold_factors([space], tied.axes, tied.scales, tensors)
    shifts = [_shift(diagonal, space, tied.scales, tensors) for diagonal in space.diagonals]
    for side in space.sides:
        axis = tied.axes[side.axis]
        part = axis.of(tensors[axis.tensor])
        values = part.double().cpu()
        if side.axis in factors:
            values = values * axis.spread(factors[side.axis], values)
        acting = matrices if side.writes else inverses
        act(acting, side, axis, values)
        part.copy_(values)
    for diagonal, shift in zip(space.diagonals, shifts, strict=True):
        _reset(diagonal, shift, space, tied, tensors, matrices)


def _shift(
    diagonal: Diagonal, space: MatrixSpace, scales: Tensor, tensors: Mapping[str, Tensor]
) -> Tensor | None:
    """What a norm adds to the channels that it has multiplied, float64 ``[channels]``."""
    count = len(diagonal.before)

    def read(key: str) -> Tensor:
        tensor = tensors[diagonal.tensors[key]].detach().double().cpu()
        return tensor.narrow(0, diagonal.first, count)

    if diagonal.kind == "factor":
        return None
    shift = read("bias") if "bias" in diagonal.tensors else torch.zeros(count).double()
    if "running_mean" in diagonal.tensors:
        shift = shift - diagonal.factors(tensors) * read("running_mean")
    if diagonal.kind == "norm":
        # The factors are folded away, in what they are multiplied with and in what is added.
        shift = shift / diagonal.factors(tensors)
    return shift * _behind(diagonal, space, scales, tensors)


def _behind(
    diagonal: Diagonal, space: MatrixSpace, scales: Tensor, tensors: Mapping[str, Tensor]
) -> Tensor:
    """Factors that follow a norm and are folded into what is before both (LayerScale)."""
    result = torch.ones(len(diagonal.after), dtype=torch.float64)
    for other in space.diagonals:
        follows = torch.equal(scales[other.before], scales[diagonal.after])
        if other.kind == "factor" and follows:
            result = result * other.factors(tensors)
    return result


def _reset(
    diagonal: Diagonal,
    shift: Tensor | None,
    space: MatrixSpace,
    tied: TiedChannels,
    tensors: Mapping[str, Tensor],
    matrices: Tensor,
) -> None:
    """Factors of one, and the shift in the new coordinates."""
    count = len(diagonal.before)

    def write(key: str, values: Tensor) -> None:
        part = tensors[diagonal.tensors[key]]
        if diagonal.kind == "factor":
            part.copy_(values.reshape(part.shape))
        else:
            part.narrow(0, diagonal.first, count).copy_(values)

    ones = torch.ones(count, dtype=torch.float64)
    if "running_var" in diagonal.tensors:
        write("running_var", ones)
        write("running_mean", torch.zeros_like(ones))
    if "weight" in diagonal.tensors:
        spread = math.sqrt(1.0 + diagonal.eps) if "running_var" in diagonal.tensors else 1.0
        write("weight", ones * spread - diagonal.offset)
    if "bias" in diagonal.tensors and shift is not None:
        write("bias", _moved_shift(diagonal, shift, space, tied, matrices))


def _moved_shift(
    diagonal: Diagonal,
    shift: Tensor,
    space: MatrixSpace,
    tied: TiedChannels,
    matrices: Tensor,
) -> Tensor:
    """A shift of a norm's channels, seen from the other coordinates of the space."""
    assert space.group is not None  # heads have no norms
    number, places = next(
        (number, places - before)
        for number, places in tied.groups[space.group].places
        if tied.axes[number].tensor == diagonal.tensors["bias"]
        and (before := diagonal.first - tied.axes[number].first) >= 0
        and before + len(shift) <= len(tied.axes[number].atoms)
    )
    moved = shift.clone()
    act(matrices, Side(number, places[None], True), tied.axes[number], moved)
    return moved


def random_element(
    kind: MatrixKind, size: int, generator: torch.Generator | None, condition: float
) -> Tensor:
    """A random matrix that may act, float64 ``[size, size]``."""
    if kind is MatrixKind.CENTRED and size > 1:
        start = torch.eye(size, dtype=torch.float64)
        start[:, 0] = 1.0
        basis: Tensor = torch.linalg.qr(start)[0]
        inner = torch.eye(size, dtype=torch.float64)
        inner[1:, 1:] = _rotation(size - 1, generator)
        return basis @ inner @ basis.t()
    if kind is MatrixKind.LINEAR:
        exponents = torch.rand(size, generator=generator, dtype=torch.float64) - 0.5
        spread = torch.pow(torch.tensor(condition, dtype=torch.float64), exponents)
        return _rotation(size, generator) * spread @ _rotation(size, generator)
    if kind is MatrixKind.ROTARY:
        angle, exponent = torch.rand(2, generator=generator, dtype=torch.float64)
        turned = torch.polar(condition ** (exponent - 0.5), 2 * math.pi * angle)
        return torch.stack([turned.real, -turned.imag, turned.imag, turned.real]).view(2, 2)
    return _rotation(size, generator)


def _rotation(size: int, generator: torch.Generator | None) -> Tensor:
    """A uniformly drawn orthogonal matrix."""
    drawn = torch.randn(size, size, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(drawn)
    rotation: Tensor = q * r.diagonal().sign()
    return rotation


@register_attack(
    "disguise",
    kind="removal",
    source="SliceGPT, ICLR 2024; KDD 2022; all symmetries at once: this library",
    expected="hides every mark that is read plainly; undone with the released weights",
)
def _attack(
    model: nn.Module,
    means: Means,
    *,
    condition: float = 10.0,
    decades: float = 1.0,
    flip: float = 0.5,
) -> Attacked:
    """A random element of every symmetry of the model at once; no output changes."""
    done = disguise(
        model,
        torch.Generator().manual_seed(means.seed),
        condition=condition,
        decades=decades,
        flip=flip,
        example_inputs=example_of(model, means),
    )
    if not (done.mixed or done.permuted or done.scaled):
        raise InvalidArgument(f"disguise: {type(model).__name__} has no symmetry that is known")
    figures = {"mixed": done.mixed, "permuted": done.permuted, "scaled": done.scaled}
    return Attacked(figures=figures)
