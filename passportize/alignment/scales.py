"""Signs and scales of a suspect's channels, relative to those of the released weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from passportize.alignment.axes import FIXED, Axis
from passportize.alignment.groups import TiedGroup
from passportize.alignment.held_out import HeldOut
from passportize.alignment.tied_channels import TiedChannels

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
        held_out: What signs are not taken from.
    """

    def __init__(
        self,
        tied: TiedChannels,
        released: Mapping[str, Tensor],
        suspect: Mapping[str, Tensor],
        held_out: HeldOut,
    ) -> None:
        self._tied, self._held_out = tied, held_out
        mixed = [
            tied.axes[side.axis].atoms[side.places.reshape(-1)]
            for space in tied.spaces
            for side in space.sides
        ]
        mixed += [
            torch.cat([diagonal.before, diagonal.after])
            for space in tied.spaces
            for diagonal in space.diagonals
        ]
        # Where a matrix acts, it says how large a channel is, and of which sign.
        self._free = tied.free.clone()
        self._signed = torch.ones(int(tied.signs.max()) + 1, dtype=torch.bool)
        self._signed[tied.signs[FIXED]] = False
        if mixed:
            self._free[tied.scales[torch.cat(mixed)]] = False
            self._signed[tied.signs[torch.cat(mixed)]] = False
        self._first = self._first_steps(tied.scales, len(self._free))
        # What a norm makes of channels, with factors for all heads alike, is read and not made.
        made, read = (
            self._first_steps(tied.signs, len(self._signed), roles)
            for roles in (_MAKING, ("columns",))
        )
        self._first_of_sign = torch.where(made < read, made, read)
        none = torch.zeros(0, dtype=torch.int64)
        self._made = torch.cat([none, *(made for made, _, _ in tied.products)])
        self._sizes = [self._measure(released.__getitem__), self._measure(suspect.__getitem__)]
        self._signs = torch.ones(len(self._signed), dtype=torch.float64)
        self._of_sign = torch.ones(len(tied.signs), dtype=torch.float64)
        self._source = torch.arange(len(tied.scales))
        self._exchanged = [self._source.clone()] * (len(tied.exchanges) + 1)

    def _first_steps(self, classes: Tensor, count: int, roles: tuple[str, ...] = _MAKING) -> Tensor:
        """Where in the forward pass something of each class is met first in one of some roles."""
        first = torch.full((count,), len(self._tied.axes) + 1_000_000)
        for axis in self._tied.axes:
            if axis.role in roles:
                steps = torch.full_like(axis.atoms, axis.step)
                first.scatter_reduce_(0, classes[axis.atoms], steps, "amin")
        return first

    def measure_again(self, suspect: Callable[[str], Tensor]) -> None:
        """Sizes of the suspect's channels, once a matrix on others is known.

        Args:
            suspect: Its tensors by name, without the matrices.
        """
        self._sizes[1] = self._measure(suspect)

    def place(self, group: TiedGroup, order: Tensor) -> None:
        """Take note of the places that the channels of a group have in the suspect."""
        for number, places in group.places:
            atoms = self._tied.axes[number].atoms
            self._source[atoms[places.reshape(-1)]] = atoms[places[order].reshape(-1)]

    def exchange(self, orders: Sequence[Tensor | None]) -> None:
        """Take note of the places of groups that changed places as wholes, as far as known."""
        source = torch.arange(len(self._source))
        for at, exchange in enumerate(self._tied.exchanges):
            order = orders[at]
            if order is not None:
                moved = source.clone()
                moved[exchange.atoms.reshape(-1)] = source[exchange.atoms[order].reshape(-1)]
                source = moved
            self._exchanged[at + 1] = source

    def sources(self, atoms: Tensor) -> Tensor:
        """The suspect's atoms at the places of these."""
        found: Tensor = self._exchanged[-1][self._source[atoms]]
        return found

    def factors(self, atoms: Tensor) -> Tensor:
        """What the suspect's channels at the places of these atoms were multiplied with."""
        own, other = self._sizes[0][atoms], self._sizes[1][self.sources(atoms)]
        ratio = torch.where((own > 0) & (other > 0), other / own.clamp_min(1e-300), 1.0)
        return ratio * self._of_sign[atoms]

    def _by_atom(self, squares: Tensor) -> Tensor:
        """Size of every atom, of squares by class; 1 where it cannot change."""
        return self._tied.times(torch.where(self._free, squares.sqrt(), 1.0)[self._tied.scales])

    def undo(self, axis: Axis, tensor: Tensor) -> None:
        """Take the factors of an axis out of a weight, in place."""
        factors = self.factors(axis.atoms)
        if axis.role == "rows":
            factors = 1.0 / factors
        elif axis.role != "columns":
            return
        axis.of(tensor).mul_(axis.spread(factors, tensor).to(tensor.device, tensor.dtype))

    def relative(self, axis: Axis, tensor: Tensor, exchanges: int | None = None) -> Tensor:
        """A vector of numbers of channels in units of their sizes, without signs, float64.

        Args:
            axis: Where the numbers lie.
            tensor: The vector.
            exchanges: How many exchanges are undone in it, if it is the suspect's; None for the
                released one.
        """
        values = axis.of(tensor).detach().double().cpu().abs()
        atoms = axis.atoms if exchanges is None else self._exchanged[exchanges][axis.atoms]
        sizes = self._sizes[int(exchanges is not None)][atoms]
        sizes = torch.where(sizes > 0, sizes, 1.0)
        return values / (sizes.square() if axis.role == "variance" else sizes)

    def set_signs(
        self, step: int, matched: Callable[[str], tuple[Tensor, Tensor]], late: bool = False
    ) -> bool:
        """Signs of the channels that are first made at a step.

        Args:
            step: Place in the forward pass.
            matched: The released and the suspect's tensor of a name, as far as it is known.
            late: Whether the layers that read the channels are known, too.

        Returns:
            Whether a sign is another than before.
        """
        made = (self._first_of_sign == step) & self._signed
        if not bool(made.any()):
            return False
        products = torch.zeros_like(self._signs)
        both: dict[str, Tensor] = {}
        for axis in self._tied.axes:
            makes = axis.step == step and axis.role in _MAKING
            reads = late and axis.role == "columns"
            if not (makes or reads):
                continue
            classes = self._tied.signs[axis.atoms]
            if not bool(made[classes].any()):
                continue
            # Every group of a layer has axes of its own on the same tensor.
            if axis.tensor not in both:
                own, other = matched(axis.tensor)
                fitted = self._held_out.fitted(axis.tensor)
                both = {axis.tensor: (own * fitted).double().mul_(other)}
            dots = (
                axis.of(both[axis.tensor]).movedim(axis.dim, 0).reshape(len(axis.atoms), -1).sum(1)
            )
            if axis.role in ("rows", "columns"):
                # The sign that it has now was taken out of the aligned tensor.
                dots = dots * self._signs[classes]
            if axis.inputs is not None:
                dots = dots * self._signs[self._tied.signs[axis.inputs]]
            products.index_add_(0, classes, dots)
        signs = torch.where(made & (products < 0), -1.0, torch.where(made, 1.0, self._signs))
        changed = not torch.equal(signs, self._signs)
        self._signs = signs
        self._of_sign = self._tied.times(signs[self._tied.signs])
        return changed

    def _measure(self, tensors: Callable[[str], Tensor]) -> Tensor:
        """Size of every atom in one model, float64."""
        squares = torch.zeros(len(self._free), dtype=torch.float64)
        columns: dict[str, list[Axis]] = {}
        for axis in self._tied.axes:
            if axis.role == "columns":
                columns.setdefault(axis.tensor, []).append(axis)
        measured: dict[str, Tensor] = {}
        for axis in self._tied.axes:
            if axis.role not in _MAKING:
                continue
            classes = self._tied.scales[axis.atoms]
            mine = (self._first[classes] == axis.step) & self._free[classes]
            if not bool(mine.any()):
                continue
            if axis.role == "rows" and axis.tensor in columns:
                if axis.tensor not in measured:
                    whole = tensors(axis.tensor).detach()
                    measured = {axis.tensor: whole.to("cpu", torch.float64, copy=True)}
                    for other in columns[axis.tensor]:
                        known = self._tied.scales[other.atoms]
                        sizes = torch.where(self._free[known], squares[known].sqrt(), 1.0)
                        if bool(torch.isin(other.atoms, self._made).any()):
                            sizes = self._by_atom(squares)[other.atoms]
                        sizes = torch.where(sizes > 0, sizes, 1.0)
                        part = other.of(measured[axis.tensor])
                        part.mul_(other.spread(sizes, part))
                tensor = measured[axis.tensor]
            else:
                tensor = tensors(axis.tensor).detach().double().cpu()
            rows = axis.of(tensor).movedim(axis.dim, 0).reshape(len(axis.atoms), -1)
            squares.index_add_(0, classes[mine], rows.square().sum(1)[mine])
        return self._by_atom(squares)
