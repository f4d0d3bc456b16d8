"""Tensors with the factors of norms folded into their neighbours, and back.

Where a matrix acts on channels, a norm keeps no factors of its own. So both models are compared as
if their norms had none: what a reader is multiplied with, or a writer, is folded into it. Before a
norm that takes the mean over channels, what all channels have in common is nothing, and is taken
out as well.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from passportize.alignment.axes import Axis
from passportize.alignment.spaces import MatrixKind, Side, fold_factors
from passportize.alignment.tied_channels import TiedChannels
from passportize.utils.precision import at_least_float32

__all__ = ["Folded", "act", "is_whole"]


class Folded:
    """The tensors of one model, folded.

    Args:
        tied: What its channels are.
        tensors: Its tensors by first name; left as they are.

    Attributes:
        tensors: The folded ones, in at least float32.
    """

    def __init__(self, tied: TiedChannels, tensors: Mapping[str, Tensor]) -> None:
        self._tied = tied
        self._factors = fold_factors(tied.spaces, tied.axes, tied.scales, tensors)
        self._sides: dict[str, list[tuple[Side, MatrixKind]]] = {}
        for space in tied.spaces:
            for side in space.sides:
                name = tied.axes[side.axis].tensor
                if tensors[name].dim() > 1:
                    self._sides.setdefault(name, []).append((side, space.kind))
        self.tensors = {
            name: self._fold(name, tensor) if name in self._sides else tensor
            for name, tensor in tensors.items()
        }

    def _fold(self, name: str, tensor: Tensor) -> Tensor:
        result = at_least_float32(tensor, copy=True)
        for axis, factors in self._of(name):
            part = axis.of(result)
            part.mul_(axis.spread(factors, part).to(part))
        for side, kind in self._sides[name]:
            axis = self._tied.axes[side.axis]
            part = axis.of(result)
            if kind is MatrixKind.CENTRED:
                turned = part.movedim(axis.dim, 0)
                if is_whole(side, turned):
                    turned -= turned.mean(0, keepdim=True)
                    continue
                flat = side.places.reshape(-1)
                chosen = turned.index_select(0, flat)
                bundles = chosen.view(*side.places.shape, *turned.shape[1:])
                bundles -= bundles.mean(1, keepdim=True)
                turned.index_copy_(0, flat, chosen)
        return result

    def unfold(self, name: str, tensor: Tensor) -> Tensor:
        """A folded tensor in the coordinates of this model, as a copy."""
        if name not in self._sides:
            return tensor
        result = tensor.clone()
        for axis, factors in self._of(name):
            inverse = torch.where(factors == 0, 0.0, 1.0 / factors.masked_fill(factors == 0, 1))
            part = axis.of(result)
            part.mul_(axis.spread(inverse, part).to(part))
        return result

    def _of(self, name: str) -> list[tuple[Axis, Tensor]]:
        """The axes of a tensor that have factors; several spaces may share one."""
        numbers = {side.axis for side, _ in self._sides[name]} & self._factors.keys()
        return [(self._tied.axes[number], self._factors[number]) for number in sorted(numbers)]


def is_whole(side: Side, part: Tensor) -> bool:
    """Whether a side is all channels of a part, in their order: most residual streams are."""
    if side.places.shape != (1, len(part), 1) or part.dim() < 2:
        return False
    return bool((side.places.reshape(-1) == torch.arange(len(part))).all())


def act(matrices: Tensor, side: Side, axis: Axis, part: Tensor) -> None:
    """Matrices on the channels of a space along one axis of a tensor, in place.

    Args:
        matrices: ``[blocks, size, size]``.
        side: Where the channels lie.
        axis: The axis.
        part: What the axis means of the tensor; what belongs to no channel of the space stays.
    """
    turned = part.movedim(axis.dim, 0)
    blocks, size, _ = side.places.shape
    matrices = matrices.to(part)
    if is_whole(side, turned):
        if part.dim() == 2 and axis.dim == 1:
            # The product as it lies in memory, without a transposition.
            part.copy_(part @ matrices[0].t())
        else:
            turned.copy_((matrices[0] @ turned.flatten(1)).view(turned.shape))
        return
    flat = side.places.reshape(-1)
    first, count = int(flat[0]), len(flat)
    if bool((flat == torch.arange(first, first + count)).all()):
        chosen = turned.narrow(0, first, count)
        mixed = torch.bmm(matrices, chosen.reshape(blocks, size, -1))
        chosen.copy_(mixed.view(chosen.shape))
    else:
        chosen = turned[flat]
        turned[flat] = torch.bmm(matrices, chosen.reshape(blocks, size, -1)).view(chosen.shape)
