"""Which entries of a wider model stand for which of a narrower one of the same structure."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from passportize.alignment.held_out import HeldOut
from passportize.alignment.tied_channels import TiedChannels

__all__ = ["MOST_WIDENED", "OTHER_TIES", "WidenedHeldOut", "Widths"]

OTHER_TIES = "its channels are tied to each other in another way"

MOST_WIDENED = 8
"""Times as many channels as the other model has in a group, beyond which nothing is tried."""


class Widths:
    """Two models of one structure, of which one has groups with more channels.

    Args:
        wide: Channels of the wider one.
        narrow: Channels of the other.

    Attributes:
        sizes: Channels of each group in the narrower one.
        fits: Whether they are of one structure.
    """

    def __init__(self, wide: TiedChannels, narrow: TiedChannels) -> None:
        self._wide, self._narrow = wide, narrow
        self.sizes = [group.size for group in narrow.groups]
        self.fits = self._of_one_structure()

    def _of_one_structure(self) -> bool:
        def structure(tied: TiedChannels) -> tuple[object, ...]:
            axes = tuple(
                (axis.tensor, axis.dim, axis.role, axis.rows is None) for axis in tied.axes
            )
            groups = tuple(
                tuple((number, places.shape[1]) for number, places in group.places)
                for group in tied.groups
            )
            return axes, groups, len(tied.spaces)

        same = structure(self._wide) == structure(self._narrow)
        return same and all(
            size <= group.size for size, group in zip(self.sizes, self._wide.groups, strict=True)
        )

    def first(self) -> list[Tensor]:
        """The first channels of each group, as many as the narrower model has."""
        return [torch.arange(size) for size in self.sizes]

    def source(
        self, name: str, wide: torch.Size, narrow: torch.Size, kept: Sequence[Tensor]
    ) -> list[Tensor | None]:
        """For every dimension of a tensor the entries of the wide model that are kept, in order.

        Args:
            name: The tensor.
            wide: Its shape there.
            narrow: Its shape in the narrower model.
            kept: For every group the channels that are kept, each in the place of its number in
                this list.

        Returns:
            Entries by dimension; None where all are. What does not fit raises a ``ValueError``.
        """
        if len(wide) != len(narrow):
            raise ValueError(name)
        return [self._entries(name, dim, wide[dim], narrow[dim], kept) for dim in range(len(wide))]

    def _entries(
        self, name: str, dim: int, wide: int, narrow: int, kept: Sequence[Tensor]
    ) -> Tensor | None:
        """Those of one dimension that are kept; None where all are, in their order."""
        found = self._along(name, dim, wide, narrow, kept)
        same = wide == narrow and bool((found == torch.arange(len(found))).all())
        return None if same else found

    def _along(self, name: str, dim: int, wide: int, narrow: int, kept: Sequence[Tensor]) -> Tensor:
        source = torch.full((narrow,), -1)
        free = torch.ones(wide, dtype=torch.bool)
        for number, group in enumerate(self._wide.groups):
            small = self._narrow.groups[number]
            for (at, places), (_, target) in zip(group.places, small.places, strict=True):
                axis = self._wide.axes[at]
                if axis.tensor != name or axis.dim != dim:
                    continue
                first = self._narrow.axes[at].first
                free[axis.first + places.reshape(-1)] = False
                source[first + target.reshape(-1)] = axis.first + places[kept[number]].reshape(-1)
        open_ = source < 0
        if int(open_.sum()) != int(free.sum()):
            raise ValueError(name)
        source[open_] = free.nonzero()[:, 0]
        return source

    def narrowed(
        self, name: str, tensor: Tensor, shape: torch.Size, kept: Sequence[Tensor]
    ) -> Tensor:
        """A tensor of the wide model in the shape of the other; arguments as for :meth:`source`."""
        tensor, within = self._within_groups(name, tensor, shape, kept)
        for dim in range(len(shape)):
            wide, narrow = tensor.shape[dim], shape[dim]
            entries = self._entries(name, dim, wide, narrow, kept) if dim != within else None
            if entries is not None:
                tensor = tensor.index_select(dim, entries.to(tensor.device))
        return tensor

    def _within_groups(
        self, name: str, tensor: Tensor, shape: torch.Size, kept: Sequence[Tensor]
    ) -> tuple[Tensor, int | None]:
        """A weight of a grouped convolution with those channels alone that each group keeps.

        Each has its own, along one and the same dimension, which is given as well.
        """
        found: Tensor | None = None
        within: int | None = None
        for number, group in enumerate(self._wide.groups):
            for at, places in group.places:
                axis = self._wide.axes[at]
                if axis.tensor != name or axis.rows is None:
                    continue
                if tensor.shape[axis.dim] == shape[axis.dim]:
                    continue
                if found is None:
                    within = axis.dim
                    size = [n if d != axis.dim else shape[d] for d, n in enumerate(tensor.shape)]
                    found = tensor.new_zeros(size)
                entries = axis.first + places[kept[number]].reshape(-1).to(tensor.device)
                first, last = axis.rows
                part = tensor[first:last].index_select(axis.dim, entries)
                if part.shape[axis.dim] != found.shape[axis.dim]:
                    raise ValueError(name)
                found[first:last] = part
        return (tensor if found is None else found), within

    def widened(self, name: str, tensor: Tensor, shape: torch.Size) -> Tensor:
        """A tensor of the narrow model in the shape of the other: first channels, then zeros."""
        for dim, entries in enumerate(self.source(name, shape, tensor.shape, self.first())):
            if entries is not None:
                grown = list(tensor.shape)
                grown[dim] = shape[dim]
                tensor = tensor.new_zeros(grown).index_copy_(dim, entries, tensor)
        return tensor


class WidenedHeldOut(HeldOut):
    """What an alignment looks at, in the shapes of a wider model: nothing that only it has.

    Args:
        held_out: The same in the narrower model.
        widths: Both models.
        narrow: Shapes of the narrower by name.
        wide: Those of the wider.
    """

    def __init__(
        self,
        held_out: HeldOut,
        widths: Widths,
        narrow: dict[str, torch.Size],
        wide: dict[str, torch.Size],
    ) -> None:
        self._held_out, self._widths = held_out, widths
        self._narrow, self._wide = narrow, wide
        self._masks: dict[str, Tensor] = {}

    def readable(self, name: str) -> bool:
        """As in the narrower model."""
        return self._held_out.readable(name)

    def holds(self, name: str) -> bool:
        """As in the narrower model."""
        return self._held_out.holds(name)

    def share(self, name: str) -> float:
        """As in the narrower model."""
        return self._held_out.share(name)

    def compared(self, name: str) -> bool:
        """As in the narrower model."""
        return self._held_out.compared(name)

    def fitted(self, name: str) -> Tensor:
        """The entries of the narrower model from which an alignment is fitted."""
        if self._narrow[name] == self._wide[name]:
            return self._held_out.fitted(name)
        if name not in self._masks:
            fitted = self._held_out.fitted(name).contiguous()
            self._masks[name] = self._widths.widened(name, fitted, self._wide[name])
        return self._masks[name]
