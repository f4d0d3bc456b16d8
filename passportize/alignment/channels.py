"""Which channels of a model have to move together, and which may change their scale.

Every channel that a layer makes is an *atom*, a number. Two relations hold between atoms: one moves
with the other (the input and the output of a norm), or it is the same one (two sides of an
addition), so that it is also scaled alike. Atom 0, :data:`FIXED`, can do neither; -1,
:data:`BLANK`, stands for values that do not change when channels change places.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from passportize.alignment.axes import BLANK, FIXED, Axis, Diagonal, Heads, SharedKeys, Table

__all__ = [
    "ChannelLabels",
    "first_along_others",
    "marked",
    "thin",
    "varied",
]


class ChannelLabels:
    """Collects atoms, relations between them, and the axes on which they lie.

    Attributes:
        count: Number of atoms so far.
        axes: What was found, in the order of the forward pass.
        diagonals: Factors of channels that neighbouring layers can take over.
        heads: Attention, as far as it was understood.
        shared: Heads of queries by the keys that they share, where several do.
        tables: Products of channels with channels.
        centred: Atoms whose mean a norm takes away, and whose length it fixes.
        spherical: Atoms whose length a norm fixes.
    """

    def __init__(self) -> None:
        self.count = 1
        self.axes: list[Axis] = []
        self.diagonals: list[Diagonal] = []
        self.heads: list[Heads] = []
        self.shared: list[SharedKeys] = []
        self.tables: list[Table] = []
        self.centred: list[Tensor] = []
        self.spherical: list[Tensor] = []
        self._rigid: list[Tensor] = []
        self._same: list[Tensor] = []
        self._together: list[Tensor] = []
        self._same_by_keys: list[Tensor] = []
        self._same_in_heads: list[Tensor] = []
        self._sized_in_heads: list[Tensor] = []
        self._together_in_heads: list[Tensor] = []
        self._unscaled: list[Tensor] = []
        self._unsized: list[Tensor] = []
        self._positive: list[Tensor] = []
        self._mirrored: list[Tensor] = []
        self._of_one_sign: list[Tensor] = []
        self._factors: list[Tensor] = []
        self._products: list[tuple[Tensor, Tensor, Tensor]] = []
        self._read: list[Tensor] = []

    def fresh(self, count: int) -> Tensor:
        """New atoms, int64 ``[count]``."""
        atoms = torch.arange(self.count, self.count + count)
        self.count += count
        return atoms

    def tie(self, left: Tensor, right: Tensor) -> None:
        """Atoms at the same place are one and the same."""
        self._same.append(_pairs(left, right))

    def accompany(self, left: Tensor, right: Tensor) -> None:
        """Atoms at the same place move together; each has its own scale."""
        self._together.append(_pairs(left, right))

    def tie_by_keys(self, left: Tensor, right: Tensor) -> None:
        """The same for heads of queries that share keys, which can change places still."""
        self._same_by_keys.append(_pairs(left, right))

    def tie_in_heads(self, left: Tensor, right: Tensor) -> None:
        """The same for what all heads of attention meet alike, which can change places still."""
        self._same_in_heads.append(_pairs(left, right))

    def size_in_heads(self, left: Tensor, right: Tensor) -> None:
        """The same where each head has signs of its own: what they meet takes their size alone."""
        self._sized_in_heads.append(_pairs(left, right))

    def accompany_in_heads(self, left: Tensor, right: Tensor) -> None:
        """The same as :meth:`accompany`, likewise."""
        self._together_in_heads.append(_pairs(left, right))

    def pin(self, labels: Tensor) -> None:
        """These stay where they are, as they are."""
        self.tie(labels, torch.tensor(FIXED))

    def unscale(self, labels: Tensor) -> None:
        """The scale of these is fixed, size and sign."""
        self._unscaled.append(_distinct(labels))

    def is_unscaled(self, labels: Tensor) -> bool:
        """Whether that is known of some of these by now."""
        known = torch.cat([torch.zeros(0, dtype=torch.int64), *self._unscaled])
        return bool(marked(known, self.count)[_distinct(labels)].any())

    def unsize(self, labels: Tensor) -> None:
        """The size of these is fixed: a step is odd, or takes the size away."""
        self._unsized.append(_distinct(labels))

    def mirror(self, left: Tensor, right: Tensor, always: bool = False) -> None:
        """Atoms at the same place change their signs together or not at all.

        Args:
            left: Some atoms.
            right: Others.
            always: Whether nothing else can take the sign of the ones over.
        """
        (self._of_one_sign if always else self._mirrored).append(_pairs(left, right))

    def multiply(self, left: Tensor, right: Tensor) -> None:
        """Atoms at the same place are multiplied, so that one and the same would be squared."""
        self._factors.append(_pairs(left, right, different=False))

    def times(self, left: Tensor, right: Tensor) -> Tensor | None:
        """Labels of a product of two factors; None where their channels do not meet one by one.

        Its channels are those of the left one, times what each has on the right
        (:meth:`products`).
        """
        one, other = pairs = _pairs(left, right)
        narrow = thin(left)
        if bool((narrow <= FIXED).any()) or bool((thin(right) <= FIXED).any()):
            return None
        if not len(one) or len(torch.unique(pairs)) < pairs.numel():
            return None
        made = self.fresh(len(one))
        self._products.append((one, other, made))
        self.read(other)
        # Pairs come in the order of the left one.
        return made[torch.searchsorted(one, narrow.contiguous())].expand(left.shape)

    def products(self) -> tuple[Tensor, ...]:
        """Channels of every product, of its left and its right factor, int64 ``[3, channels]``.

        What else is done to a product has to hold for both factors; one that is added to something
        has to be in its scale, so what is on its right has none to be changed. To be called once,
        when all is followed.
        """
        none = torch.zeros(2, 0, dtype=torch.int64)
        tied = [*self._same, *self._same_by_keys, *self._same_in_heads, *self._sized_in_heads]
        added = torch.unique(torch.cat([none, *tied], 1))
        together = torch.unique(torch.cat([none, *self._mirrored, *self._of_one_sign], 1))
        found = []
        # From the last one back: factors can be products themselves.
        for one, other, made in reversed(self._products):
            for limits in (self._unscaled, self._unsized, self._positive):
                limits.append(other[torch.isin(made, torch.cat([none[0], *limits]))])
            summed = torch.isin(made, added)
            self._unscaled.append(other[summed])
            self._positive.append(other[torch.isin(made, together)])
            self.tie(one, made)
            self.accompany(other, made)
            found.append(torch.stack([made, one, other])[:, ~summed])
        return tuple(reversed(found))

    def read(self, labels: Tensor) -> None:
        """These are read, if not by a weight."""
        self._read.append(_distinct(labels))

    def positive(self, labels: Tensor) -> None:
        """The sign of these is fixed."""
        self._positive.append(_distinct(labels))

    def stiffen(self, labels: Tensor) -> None:
        """Each of these is seen by itself: they cannot be mixed with others."""
        self._rigid.append(_distinct(labels))

    @property
    def rigid(self) -> Tensor:
        """Atoms that cannot be mixed with others."""
        atoms: Tensor = torch.unique(torch.cat([torch.tensor([FIXED]), *self._rigid]))
        return atoms

    def classes(self) -> tuple[Tensor, Tensor]:
        """Number of the class of every atom: of those that move together, and of one scale."""
        in_heads = [*self._same_in_heads, *self._sized_in_heads, *self._together_in_heads]
        moving = self._components([*self._same, *self._same_by_keys, *self._together, *in_heads])
        return moving, self.scales()

    @property
    def meets_heads(self) -> bool:
        """Whether anything is met alike by all heads, so that :meth:`apart` is something else."""
        return bool(self._same_in_heads or self._sized_in_heads or self._together_in_heads)

    def apart(self) -> Tensor:
        """Number of the class of every atom, of those that move together where heads do so."""
        return self._components([*self._same, *self._same_by_keys, *self._together])

    def one_by_one(self) -> Tensor:
        """The same where every head of queries moves by itself, whichever share keys."""
        return self._components([*self._same, *self._together])

    def scales(self) -> Tensor:
        """Number of the class of one scale of every atom."""
        return self._components(
            [*self._same, *self._same_by_keys, *self._same_in_heads, *self._sized_in_heads]
        )

    def signs(self) -> tuple[Tensor, Tensor]:
        """Number of the class of one sign of every atom; where it is fixed, that of ``FIXED``.

        Returns:
            Each class by itself, which is what an undoing asks for; and as one those that change
            their signs only together, so that the function stays.
        """
        same = [*self._same, *self._same_by_keys, *self._same_in_heads, *self._of_one_sign]
        alone = self._components(same)
        can = self._are_read(alone)
        fixed = [torch.tensor([FIXED]), *self._unscaled, *self._positive, self._squared(alone)]
        can[alone[torch.cat(fixed)]] = False
        can = can[alone]
        together = self._components([*same, *self._mirrored])
        staying = marked(together[~can], int(together.max()) + 1)[together]
        return (
            torch.where(can, alone, alone[FIXED]),
            torch.where(staying, together[FIXED], together),
        )

    def _are_read(self, classes: Tensor) -> Tensor:
        """Which classes are read; what nothing reads is an output of the model."""
        read = torch.zeros(int(classes.max()) + 1, dtype=torch.bool)
        for axis in self.axes:
            if axis.role == "columns":
                read[classes[axis.atoms]] = True
            elif axis.inputs is not None:
                read[classes[axis.inputs]] = True
        for atoms in self._read:
            read[classes[atoms]] = True
        return read

    def _squared(self, classes: Tensor) -> Tensor:
        """Atoms that are multiplied with others of their class."""
        none = torch.zeros(0, dtype=torch.int64)
        pairs = [pair[:, classes[pair[0]] == classes[pair[1]]].flatten() for pair in self._factors]
        return torch.cat([none, *pairs])

    def limits(self, scales: Tensor) -> tuple[Tensor, Tensor]:
        """Which classes of one scale may be rescaled, and which may change their sign, too."""
        free = self._are_read(scales)
        fixed = [torch.tensor([FIXED]), *self._unscaled, *self._unsized, self._squared(scales)]
        free[scales[torch.cat(fixed)]] = False
        signed = free.clone()
        for atoms in self._positive:
            signed[scales[atoms]] = False
        return free, signed

    def _components(self, pairs: list[Tensor]) -> Tensor:
        # Here, because importing scipy takes longer than the rest of passportize together.
        import numpy as np
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        edges = torch.cat([torch.zeros(2, 0, dtype=torch.int64), *pairs], dim=1).numpy()
        ones = np.ones(edges.shape[1], dtype=np.int8)
        matrix = coo_matrix((ones, (edges[0], edges[1])), shape=(self.count, self.count))
        return torch.from_numpy(connected_components(matrix, directed=False)[1]).to(torch.int64)


def marked(numbers: Tensor, count: int) -> Tensor:
    """Which of so many numbers are among some, bool ``[count]``."""
    found = torch.zeros(count, dtype=torch.bool)
    found[numbers] = True
    return found


def thin(labels: Tensor) -> Tensor:
    """The same labels with dimensions of equal entries (stride 0) cut to length 1."""
    for dim, (size, stride) in enumerate(zip(labels.shape, labels.stride(), strict=True)):
        if stride == 0 and size > 1:
            labels = labels.narrow(dim, 0, 1)
    return labels


def varied(labels: Tensor) -> list[int]:
    """The dimensions along which labels differ."""
    return [d for d in range(labels.dim()) if bool((labels != labels.narrow(d, 0, 1)).any())]


def first_along_others(labels: Tensor, kept: Sequence[int]) -> Tensor:
    """The first entry along every dimension but some, whose length becomes one."""
    for dim in range(labels.dim()):
        if dim not in kept:
            labels = labels.narrow(dim, 0, 1)
    return labels


def _pairs(left: Tensor, right: Tensor, different: bool = True) -> Tensor:
    """Pairs at the same place, ``[2, pairs]``, without blanks; those of two atoms by default."""
    left, right = thin(left), thin(right)
    shape = torch.broadcast_shapes(left.shape, right.shape)  # type: ignore[no-untyped-call]
    left, right = left.expand(shape), right.expand(shape)
    chosen = (left != BLANK) & (right != BLANK)
    if different:
        chosen &= left != right
    # As one number each, because unique columns take a hundred times longer than unique numbers.
    joined = left << 32 | right
    for dim in range(joined.dim()):
        # Most positions repeat the one before, which is seen faster than by sorting.
        chosen.movedim(dim, 0)[1:].logical_and_(joined.diff(dim=dim).movedim(dim, 0) != 0)
    joined = torch.unique(joined[chosen])
    return torch.stack([joined >> 32, joined & 0xFFFFFFFF])


def _distinct(labels: Tensor) -> Tensor:
    atoms: Tensor = torch.unique(thin(labels))
    return atoms[atoms != BLANK]
