"""Channels added to residual streams: the network computes what it did, and no shape fits.

Before a norm over channels nothing that all of them have in common is seen, so what writes a stream
can be centred; channels that are zero then change a norm by a common factor, which its own factors
make up for. It takes no data; :func:`passportize.attacks.disguise` then rotates the wider stream.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from passportize.alignment.spaces import MatrixKind, MatrixSpace
from passportize.alignment.tied_channels import TiedChannels, find_tied_channels
from passportize.attacks.attack import Attacked, Means, register_attack
from passportize.attacks.descent import example_of
from passportize.attacks.disguise import mix_channels
from passportize.errors import InvalidArgument
from passportize.tracing.unchanged import FunctionCheck
from passportize.utils.resized import put_tensor, tensor_of

__all__ = ["widen_streams"]


@torch.no_grad()
def widen_streams(
    model: nn.Module,
    share: float = 0.25,
    generator: torch.Generator | None = None,
    example_inputs: object = None,
) -> int:
    """Rotate every residual stream between norms over channels and add channels to it, in place.

    Args:
        model: A plain model, in evaluation mode; its parameters are replaced by larger ones.
        share: How many are added, of those that are there.
        generator: Source of all that is drawn, on the CPU.
        example_inputs: As in :func:`passportize.plan`.

    Returns:
        The number of channels added; a stream that changes an output on the example is put back.

    Raises:
        InvalidArgument: ``share`` is out of range.
        TracingError: The model cannot be read.
    """
    if not 0 < share <= 4:
        raise InvalidArgument(f"wider-streams: share={share!r} must lie in (0, 4]")
    # Factors of norms are in what reads a stream from here on.
    mix_channels(model, generator, example_inputs=example_inputs)
    check = FunctionCheck(model, example_inputs)
    tied = find_tied_channels(model, example_inputs)
    added = 0
    for space in tied.spaces:
        if space.kind not in (MatrixKind.CENTRED, MatrixKind.ORTHOGONAL) or space.group is None:
            continue
        names = {tied.axes[side.axis].tensor for side in space.sides}
        names |= {name for diagonal in space.diagonals for name in diagonal.tensors.values()}
        before = {name: tensor_of(model, name) for name in names}
        more = math.ceil(share * space.size)
        _widen(model, space, tied, more)
        if check.changed(model):
            for name, tensor in before.items():
                put_tensor(model, name, tensor)
        else:
            added += more
    return added


def _widen(model: nn.Module, space: MatrixSpace, tied: TiedChannels, more: int) -> None:
    for side in space.sides:
        axis = tied.axes[side.axis]
        own = tensor_of(model, axis.tensor)
        if own.shape[axis.dim] != space.size:
            continue  # other channels lie beside, and nothing will fit
        values = own.detach().double().movedim(axis.dim, 0)
        if side.writes and space.kind is MatrixKind.CENTRED:
            values = values - values.mean(0, keepdim=True)
        _put(model, axis.tensor, torch.cat([values, _nothing(values, more)]).movedim(0, axis.dim))
    for diagonal in space.diagonals:
        for key, name in diagonal.tensors.items():
            values = tensor_of(model, name).detach().double()
            new = _nothing(values, more)
            if key == "weight" and diagonal.kind == "norm":
                own = values + diagonal.offset
                values = own * math.sqrt(space.size / (space.size + more)) - diagonal.offset
                new = new + 1 - diagonal.offset
            elif key in ("weight", "running_var"):
                new = new + 1
            _put(model, name, torch.cat([values, new]))


def _nothing(values: Tensor, more: int) -> Tensor:
    return values.new_zeros(more, *values.shape[1:])


def _put(model: nn.Module, name: str, values: Tensor) -> None:
    put_tensor(model, name, values.contiguous().to(tensor_of(model, name)))


@register_attack(
    "wider-streams",
    kind="removal",
    source="this library; rotations: SliceGPT, ICLR 2024",
    expected="hides every mark whose verification wants the released shapes; taken out with the "
    "released model",
)
def _attack(model: nn.Module, means: Means, *, share: float = 0.25) -> Attacked:
    """Channels added to residual streams between norms that change no output."""
    added = widen_streams(
        model, share, torch.Generator().manual_seed(means.seed), example_of(model, means)
    )
    if not added:
        raise InvalidArgument(
            f"wider-streams: {type(model).__name__} has no stream between norms over channels"
        )
    return Attacked(figures={"channels added": added})
