"""Signs and scales of a suspect's channels, relative to those of the released weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from passportize.alignment.channels import Axis
from passportize.alignment.held_out import fitting_entries
from passportize.alignment.tied_channels import TiedChannels, TiedGroup

__all__ = ["ChannelScales"]

_MAKING = ("rows", "vector", "scale")


class ChannelScales:
    """What every channel of a suspect was multiplied with.

    The size of a channel is the length of what makes it first in the forward pass: scale and shift
    of a norm, or the row and bias of a weight whose columns are measured in the sizes of their own
    channels. That needs no matching, for it is known of either model by itself; the factor is the
    quotient. The sign is that of the product of the two rows, once their places are known.

    Args:
        tied: The channels.
        released: The owner's tensors by first name.
        suspect: The suspect's.
    """

    def __init__(
        self, tied: TiedChannels, released: Mapping[str, Tensor], suspect: Mapping[str, Tensor]
    ) -> None:
        self._tied, self._released = tied, released
        self._first = torch.full((len(tied.free),), len(tied.axes) + 1_000_000)
        for axis in tied.axes:
            if axis.role in _MAKING:
                steps = torch.full_like(axis.atoms, axis.step)
                self._first.scatter_reduce_(0, tied.scales[axis.atoms], steps, "amin")
        self._sizes = self._measure(released), self._measure(suspect)
        self._signs = torch.ones(len(tied.free), dtype=torch.float64)
        self._source = torch.arange(len(tied.scales))

    def place(self, group: TiedGroup, order: Tensor) -> None:
        """Take note of the places that the channels of a group have in the suspect."""
        for number, places in group.places:
            atoms = self._tied.axes[number].atoms
            self._source[atoms[places.reshape(-1)]] = atoms[places[order].reshape(-1)]

    def factors(self, atoms: Tensor) -> Tensor:
        """What the suspect's channels at the places of these atoms were multiplied with."""
        classes = self._tied.scales[atoms]
        own = self._sizes[0][classes]
        other = self._sizes[1][self._tied.scales[self._source[atoms]]]
        ratio = torch.where((own > 0) & (other > 0), other / own.clamp_min(1e-300), 1.0)
        return torch.where(self._tied.free[classes], ratio * self._signs[classes], 1.0)

    def undo(self, axis: Axis, tensor: Tensor) -> None:
        """Take the factors of an axis out of a weight, in place."""
        factors = self.factors(axis.atoms)
        if axis.role == "rows":
            factors = 1.0 / factors
        elif axis.role != "columns":
            return
        axis.of(tensor).mul_(axis.spread(factors, tensor).to(tensor.device, tensor.dtype))

    def relative(self, axis: Axis, tensor: Tensor, suspect: bool) -> Tensor:
        """A vector of numbers of channels in units of their sizes, without signs, float64.

        Args:
            axis: Where the numbers lie.
            tensor: The vector, of one of the two models.
            suspect: Of which.
        """
        values = axis.of(tensor).detach().double().cpu().abs()
        classes = self._tied.scales[axis.atoms]
        sizes = self._sizes[int(suspect)][classes]
        sizes = torch.where(self._tied.free[classes] & (sizes > 0), sizes, 1.0)
        return values / (sizes.square() if axis.role == "variance" else sizes)

    def set_signs(self, step: int, aligned: Callable[[str], Tensor], late: bool = False) -> None:
        """Signs of the channels that are first made at a step.

        Args:
            step: Place in the forward pass.
            aligned: The suspect's tensors, as far as they are known.
            late: Whether the layers that read the channels are known, too.
        """
        made = self._first == step
        if not bool((made & self._tied.signed).any()):
            return
        self._signs[made] = 1.0
        products = torch.zeros_like(self._signs)
        for axis in self._tied.axes:
            makes = axis.step == step and axis.role in _MAKING
            reads = late and axis.role == "columns"
            if not (makes or reads) or not bool(made[self._tied.scales[axis.atoms]].any()):
                continue
            own = self._released[axis.tensor]
            both = own.double() * aligned(axis.tensor).double() * fitting_entries(own.shape)
            dots = axis.of(both).movedim(axis.dim, 0).reshape(len(axis.atoms), -1).sum(1)
            if axis.inputs is not None:
                dots = dots * self._signs[self._tied.scales[axis.inputs]]
            products.index_add_(0, self._tied.scales[axis.atoms], dots)
        self._signs = torch.where(made & self._tied.signed & (products < 0), -1.0, self._signs)

    def _measure(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Size of every class of one scale in one model, float64."""
        squares = torch.zeros(len(self._tied.free), dtype=torch.float64)
        for axis in self._tied.axes:
            if axis.role not in _MAKING:
                continue
            classes = self._tied.scales[axis.atoms]
            mine = (self._first[classes] == axis.step) & self._tied.free[classes]
            if not bool(mine.any()):
                continue
            tensor = tensors[axis.tensor].detach().double().cpu()
            if axis.role == "rows":
                tensor = tensor.clone()
                for other in self._tied.axes:
                    if other.tensor == axis.tensor and other.role == "columns":
                        known = self._tied.scales[other.atoms]
                        sizes = squares[known].sqrt()
                        sizes = torch.where(self._tied.free[known] & (sizes > 0), sizes, 1.0)
                        other.of(tensor).mul_(other.spread(sizes, tensor))
            rows = axis.of(tensor).movedim(axis.dim, 0).reshape(len(axis.atoms), -1)
            squares.index_add_(0, classes[mine], rows.square().sum(1)[mine])
        return squares.sqrt()
