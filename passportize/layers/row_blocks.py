"""The rows of many weights in a few blocks, and what was computed of blocks back into weights.

A block holds rows of about one length, those of all its sites below each other, short ones with
zeros behind their end. Lists of tensors are copied by one operation each (``torch._foreach_*``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from passportize.layers.computed import effective_weight
from passportize.layers.private_branch import Branch, check_rows
from passportize.signature.rows import anchor_rows
from passportize.signature.site import AnchorPart
from passportize.signature.vectors import SignVectors
from passportize.utils.precision import at_least_float32

__all__ = ["FREE_PADDING", "PADDING", "Block", "Piece", "blocks_of", "gradients_of_sources"]

PADDING = 0.25
"""Zeros behind the ends of short rows at most, as a share of the entries that are read.

Some more entries to multiply cost less than a block of its own for every length.
"""

FREE_PADDING = 2**17
"""So many zeros are always allowed: computing with them takes no longer than starting a block."""


class Piece(NamedTuple):
    """One part of one site.

    Attributes:
        branch: Of the site.
        start: Where its channels stand in the site.
        vectors: Of its rows.
        part: Which rows of ``source`` they are, where these are a view of it; else None.
        source: What gets the gradient: the weight, or rows that were computed from it.
        rows: Its rows as they lie in the source, ``[rows, entries]``, without gradient.
    """

    branch: Branch
    start: int
    vectors: SignVectors
    part: AnchorPart | None
    source: Tensor
    rows: Tensor

    @property
    def levelled(self) -> bool:
        """Whether the mean of all rows is still to be taken from each of them."""
        return self.part is not None and self.part.less_mean_row

    def rows_of(self, tensor: Tensor) -> Tensor:
        """Where in a tensor like the source the rows lie, a view."""
        return tensor if self.part is None else _view(tensor, self.part, self.vectors)


def _pieces_of(branch: Branch) -> Iterator[Piece]:
    """All parts of one site."""
    assert branch.weights is not None
    start = 0
    for (owner, attribute, part), vectors in zip(
        branch.weights.owners, branch.secret.sides, strict=True
    ):
        assert isinstance(vectors, SignVectors)
        weight = effective_weight(owner, attribute)
        piece = _piece(branch, start, vectors, part, weight)
        check_rows(piece.rows, vectors, part, weight)
        yield piece
        start += len(piece.rows)


def _piece(
    branch: Branch, start: int, vectors: SignVectors, part: AnchorPart, weight: Tensor
) -> Piece:
    # Views are told from copies by what torch knows of them, which a compiler does not show.
    if vectors.rows is None and not torch.compiler.is_compiling():
        bare = weight.detach()
        with torch.no_grad():
            rows = _view(bare, part, vectors)
        if rows._base is bare and bare.is_contiguous():
            return Piece(branch, start, vectors, part, weight, rows)
    rows = vectors.picked(anchor_rows(weight, part, vectors.window))
    return Piece(branch, start, vectors, None, rows, rows.detach())


def _view(weight: Tensor, part: AnchorPart, vectors: SignVectors) -> Tensor:
    plain = replace(part, less_mean_row=False) if part.less_mean_row else part
    return anchor_rows(weight, plain, vectors.window)


@dataclass
class Block:
    """Rows that are computed with together.

    Attributes:
        pieces: Those whose mean row is to be taken off come first, equally many rows together.
        width: Entries of a row.
        dtype: What is computed in.
        counts: Rows of each piece.
    """

    pieces: list[Piece]
    width: int
    dtype: torch.dtype

    def __post_init__(self) -> None:
        self.pieces.sort(key=lambda piece: (not piece.levelled, piece.levelled * len(piece.rows)))
        self.counts = [len(piece.rows) for piece in self.pieces]

    def fill(self) -> tuple[Tensor, Tensor]:
        """All rows ``[rows, width]`` and their codes, likewise, without gradient."""
        shape = (sum(self.counts), self.width)
        rows = self.pieces[0].rows.new_zeros(shape, dtype=self.dtype)
        codes = torch.zeros(shape, dtype=torch.uint8, device=rows.device)
        torch._foreach_copy_(self.parts(rows), [piece.rows for piece in self.pieces])
        torch._foreach_copy_(self.parts(codes), [piece.vectors.codes for piece in self.pieces])
        self.level(rows)
        return rows, codes

    def joined(self, sources: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The same out of given sources, one for each piece, with gradient."""
        rows, codes = [], []
        for piece, source in zip(self.pieces, sources, strict=True):
            own = at_least_float32(piece.rows_of(source))
            own = own - own.mean(0, keepdim=True) if piece.levelled else own
            missing = (0, self.width - piece.vectors.entries)
            rows.append(pad(own, missing))
            codes.append(pad(piece.vectors.codes, missing))
        return torch.cat(rows), torch.cat(codes)

    def parts(self, rows: Tensor) -> list[Tensor]:
        """Where the rows of each piece stand in the block's, ``[rows_i, entries_i]`` each."""
        return [
            part[:, : piece.vectors.entries]
            for part, piece in zip(rows.split_with_sizes(self.counts), self.pieces, strict=True)
        ]

    def level(self, rows: Tensor) -> None:
        """Take the mean over the rows of a piece from each of them, in place, where due.

        As it is its own transpose, it does the same to gradients.
        """
        start = 0
        levelled = (len(piece.rows) for piece in self.pieces if piece.levelled)
        for count, equal in groupby(levelled):
            stop = start + count * len(list(equal))
            part = rows[start:stop].view(-1, count, self.width)
            part -= part.mean(1, keepdim=True)
            start = stop


def blocks_of(branches: Iterable[Branch]) -> list[Block]:
    """All rows of branches in blocks of one device and dtype and about one length."""
    kinds: dict[tuple[torch.device, torch.dtype], list[Piece]] = {}
    for branch in branches:
        for piece in _pieces_of(branch):
            rows = piece.rows
            dtype = torch.float64 if rows.dtype is torch.float64 else torch.float32
            kinds.setdefault((rows.device, dtype), []).append(piece)
    return [
        Block(part, width, dtype)
        for (_, dtype), pieces in kinds.items()
        for part, width in _by_length(pieces)
    ]


def _by_length(pieces: list[Piece]) -> Iterator[tuple[list[Piece], int]]:
    spare = max(FREE_PADDING, int(PADDING * sum(piece.rows.numel() for piece in pieces)))
    lengths: dict[int, list[Piece]] = {}
    for piece in pieces:
        lengths.setdefault(piece.vectors.entries, []).append(piece)
    block: list[Piece] = []
    width = 0
    for entries in sorted(lengths, reverse=True):
        more = lengths[entries]
        zeros = (width - entries) * sum(len(piece.rows) for piece in more)
        if block and zeros <= spare:
            spare -= zeros
            block += more
            continue
        if block:
            yield block, width
        block, width = list(more), entries
    if block:
        yield block, width


def gradients_of_sources(
    sources: Sequence[Tensor], places: Iterable[tuple[int, Piece, Tensor]]
) -> list[Tensor]:
    """Gradients by sources out of those by rows.

    Args:
        sources: The tensors to make gradients for.
        places: Pieces with the number of their source and the gradient by their rows.
    """
    # One operation makes a tensor for each; zero times what is no number would be none.
    gradients = list(torch._foreach_mul(list(sources), 0))
    torch._foreach_zero_(gradients)
    rounds: list[tuple[list[Tensor], list[Tensor]]] = []
    turns = [0] * len(sources)
    for number, piece, by_rows in places:
        # A weight that several sites read comes once in a round, since parts may overlap.
        turn = turns[number]
        turns[number] += 1
        if turn == len(rounds):
            rounds.append(([], []))
        rounds[turn][0].append(piece.rows_of(gradients[number]))
        rounds[turn][1].append(by_rows)
    for index, (targets, values) in enumerate(rounds):
        (torch._foreach_add_ if index else torch._foreach_copy_)(targets, values)
    return gradients
