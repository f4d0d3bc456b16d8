"""The classic aligner, to measure ours against: it knows permutations and positive scales only.

Layer by layer in the order of the forward pass, the released rows are assigned to the suspect's by
their correlation (the Hungarian method). The assignment may be rectangular, so real channels can be
picked among dummies, and is carried to all that reads the channels. The size of a channel is that
of what makes it first, and is taken out where it is read. Later rounds look at the readers, too.

What it lacks: signs, matrices on channels, and the notion that several channels may be one. A split
channel is found, but of its outgoing weights only a part.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from benchmarks.proof.symmetries import OWNER
from passportize.alignment.held_out import HeldOut
from passportize.alignment.tied_channels import TiedChannels, find_tied_channels
from passportize.alignment.widths import Widths
from passportize.release.claim import Claim
from passportize.signature.evidence import read_by_name
from passportize.signature.matching import match_names
from passportize.signature.model_key import ModelKey
from passportize.verification.expectation import Expectation

__all__ = ["align_by_permutation", "read_by_permutation"]

ROUNDS = 3

_MAKING = ("rows", "vector", "scale")


def read_by_permutation(
    suspect: nn.Module, released: nn.Module, claim: Claim, example_inputs: Tensor
) -> dict[str, int]:
    """Bits of a suspect that was aligned classically.

    Read are the same entries as after our own alignment. This one may look at all of them, which
    flatters it a little: it is to be measured by what it recovers, not by what that would prove.

    Returns:
        Bits that match, those that match in the release, and how many were read; nothing if the
        suspect's channels are tied in another way.
    """
    own, other = released.state_dict(), suspect.state_dict()
    tied = find_tied_channels(released, example_inputs)
    wide = find_tied_channels(suspect, example_inputs)
    if not Widths(wide, tied).fits:
        return {}
    aligned = align_by_permutation(own, other, tied, wide)
    layout = Expectation.from_claim(claim).layout
    key = ModelKey(OWNER, layout)
    carrying = set(match_names(layout, own).values())
    held_out = HeldOut(tied, {name: tensor.shape for name, tensor in own.items()}, carrying)
    names = [name for name in own if held_out.readable(name)]
    unread = {name: held_out.fitted(name) for name in names if name in carrying}
    found, same = (
        read_by_name({name: tensors[name] for name in names}, key, layout, unread).reading
        for tensors in (aligned, own)
    )
    return {"matched": found.matched, "same entries": same.matched, "read": found.total}


def align_by_permutation(
    released: Mapping[str, Tensor],
    suspect: Mapping[str, Tensor],
    tied: TiedChannels,
    wide: TiedChannels,
) -> dict[str, Tensor]:
    """The suspect's tensors in the released shapes, as far as permutations and sizes go.

    Args:
        released: The owner's tensors by first name.
        suspect: The suspect's; left as they are.
        tied: The channels of the released model.
        wide: Those of the suspect, tied in the same way, perhaps more of them.
    """
    search = _Search(released, suspect, tied, wide)
    for late in (False, *(True,) * (ROUNDS - 1)):
        if not search.round(late):
            break
    return {name: search.carried(name) for name in suspect}


class _Search:
    def __init__(
        self,
        released: Mapping[str, Tensor],
        suspect: Mapping[str, Tensor],
        tied: TiedChannels,
        wide: TiedChannels,
    ) -> None:
        self._released, self._suspect = released, suspect
        self._tied, self._wide, self._widths = tied, wide, Widths(wide, tied)
        self._kept = self._widths.first()
        self._known = [False] * len(tied.groups)
        self._factors = torch.ones(len(tied.free), dtype=torch.float64)
        self._chosen: dict[tuple[str, int], Tensor | None] = {}
        self._on: dict[str, list[int]] = {}
        self._groups_on: dict[int, list[int]] = {}
        self._first = torch.full((len(tied.free),), len(tied.axes) + 1_000_000)
        for number, axis in enumerate(tied.axes):
            self._on.setdefault(axis.tensor, []).append(number)
            if axis.role in _MAKING:
                steps = torch.full_like(axis.atoms, axis.step)
                self._first.scatter_reduce_(0, tied.scales[axis.atoms], steps, "amin")
        for number, group in enumerate(tied.groups):
            for at, _ in group.places:
                self._groups_on.setdefault(at, []).append(number)

    def round(self, late: bool) -> bool:
        """All groups in the order of the forward pass; whether any channel changed its place."""
        from scipy.optimize import linear_sum_assignment

        changed = False
        for number, group in enumerate(self._tied.groups):
            score = torch.zeros(group.size, self._wide.groups[number].size)
            for at, _ in group.places:
                axis = self._tied.axes[at]
                weight = axis.moves and self._released[axis.tensor].dim() > 1
                if weight and (late or (axis.role == "rows" and self._ready(at))):
                    own, other = self._rows(number, at)
                    score += _cosines(
                        own.reshape(group.size, -1), other.reshape(score.shape[1], -1)
                    )
            kept = torch.from_numpy(linear_sum_assignment(score.numpy(), maximize=True)[1])
            changed |= not (self._known[number] and torch.equal(kept, self._kept[number]))
            self._kept[number], self._known[number] = kept, True
            for at, _ in group.places:
                self._chosen.pop((self._tied.axes[at].tensor, self._tied.axes[at].dim), None)
            self._measure(number)
        return changed

    def _ready(self, at: int) -> bool:
        """Whether everything is known that counts for the entries along an axis."""
        dim = self._tied.axes[at].dim
        return all(
            self._known[number]
            for other in self._on[self._tied.axes[at].tensor]
            if self._tied.axes[other].dim != dim
            for number in self._groups_on.get(other, ())
        )

    def _rows(self, number: int, at: int) -> tuple[Tensor, Tensor]:
        """A group's channels along an axis in both models, all that the suspect has."""
        axis, more = self._tied.axes[at], self._wide.axes[at]
        places, more_places = (
            next(found for on, found in tied.groups[number].places if on == at)
            for tied in (self._tied, self._wide)
        )
        own = axis.entries(self._released[axis.tensor], places).float()
        if axis.rows is None:
            mine = more.first + more_places.reshape(-1)
            other = self.carried(axis.tensor, axis.dim, mine).movedim(axis.dim, 0)
        else:
            other = more.entries(self.carried(axis.tensor, axis.dim), more_places)
        return own.reshape(len(own), -1), other.reshape(len(other), -1)

    def _measure(self, number: int) -> None:
        """Sizes of a group's channels, in units of the released ones."""
        squares = torch.zeros(2, len(self._factors), dtype=torch.float64)
        for at, places in self._tied.groups[number].places:
            axis = self._tied.axes[at]
            classes = self._tied.scales[axis.atoms[places]]
            mine = (self._first[classes] == axis.step) & self._tied.free[classes]
            if axis.role in _MAKING and bool(mine.any()):
                own, other = self._rows(number, at)
                other = other.reshape(-1, places.shape[1], other.shape[1])[self._kept[number]]
                for which, rows in enumerate((own, other.flatten(0, 1))):
                    sums = rows.double().square().sum(1)[mine.reshape(-1)]
                    squares[which].index_add_(0, classes[mine], sums)
        found = (squares > 0).all(0)
        self._factors[found] = (squares[1] / squares[0]).sqrt()[found]

    def carried(self, name: str, skip: int = -1, mine: Tensor | None = None) -> Tensor:
        """A tensor with its channels in their places and sizes, but along one dimension.

        Args:
            name: Its name.
            skip: The dimension that is left as it is.
            mine: Entries along it that are wanted; by default all.
        """
        tensor = self._suspect[name]
        if not tensor.is_floating_point():
            return tensor
        tensor = tensor.float().clone() if mine is None else tensor.index_select(skip, mine).float()
        for dim in range(tensor.dim()):
            entries = self._along(name, dim) if dim != skip else None
            if entries is not None:
                tensor = tensor.index_select(dim, entries)
        for at in self._on.get(name, ()):
            axis = self._tied.axes[at]
            if axis.dim != skip and tensor.dim() > 1 and axis.role in ("rows", "columns"):
                factors = self._factors[self._tied.scales[axis.atoms]]
                factors = 1 / factors if axis.role == "rows" else factors
                axis.of(tensor).mul_(axis.spread(factors.float(), tensor))
        return tensor

    def _along(self, name: str, dim: int) -> Tensor | None:
        """The suspect's entries along a dimension that are kept, in order; None where all are."""
        if (name, dim) not in self._chosen:
            shapes = self._suspect[name].shape, self._released[name].shape
            found = self._widths.source(name, *shapes, self._kept)
            for each, entries in enumerate(found):
                self._chosen.setdefault((name, each), entries)
        return self._chosen[name, dim]


def _cosines(own: Tensor, other: Tensor) -> Tensor:
    """Correlation of every row with every row of another matrix."""
    own, other = (rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-15) for rows in (own, other))
    return own @ other.t()
