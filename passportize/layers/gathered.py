"""Responses and sign loss of all sites of a model in a few operations, not some twenty for each.

The rows that answer are gathered in one block for each length of rows, and what is computed of
them is computed for the whole block. So it is where weights are whole when the root is called; the
layers of sharded models (FSDP) answer for themselves, one by one, when their weights are there.

The private factors take the responses as constants: what bits and gauge are is decided by the sign
loss alone. That loss is made after the forward pass, so that its backward pass comes first and DDP
sends every gradient as early as without passports.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from passportize.layers.computed import sources_of
from passportize.layers.private_branch import Branch
from passportize.signature.formulations import NORMALISED
from passportize.signature.response import Responses, normalised_responses
from passportize.signature.vectors import SignVectors

__all__ = ["can_gather", "gathered_factors", "gathered_penalty"]


class _Piece(NamedTuple):
    """One part of one site: its rows, and where its channels stand in the site."""

    branch: Branch
    rows: Tensor
    vectors: SignVectors
    start: int


def can_gather(branch: Branch) -> bool:
    """Whether the rows of a branch can be read now, with those of the others."""
    if not branch.bound or branch.formulation is not NORMALISED or branch.weights is None:
        return False
    return all(
        _whole(tensor)
        for owner, attribute, _ in branch.weights.owners
        for tensor in sources_of(owner, attribute)
    )


def _whole(weight: Tensor) -> bool:
    if hasattr(weight, "device_mesh"):
        return False
    return torch.compiler.is_compiling() or weight.untyped_storage().size() > 0


@torch.no_grad()
def gathered_factors(branches: Iterable[Branch]) -> dict[str, tuple[Tensor, Tensor]]:
    """``tanh(u)`` and ``tanh(v)`` of every site by name, ``[channels]`` each, without gradient.

    Args:
        branches: Those that :func:`can_gather`.

    Raises:
        PassportLocked: A branch was loaded without its secret.
    """
    sides: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for block in _blocks(branches):
        responses = _respond(block)
        both = torch.tanh(torch.stack([responses.gamma, responses.beta]))
        counts = [len(piece.rows) for piece in block]
        for piece, part in zip(block, both.split_with_sizes(counts, dim=1), strict=True):
            gamma, beta = part.unbind()
            sides.setdefault(piece.branch.site.name, []).append((gamma, beta))
    return {
        name: parts[0] if len(parts) == 1 else (_cat(parts, 0), _cat(parts, 1))
        for name, parts in sides.items()
    }


def _cat(parts: list[tuple[Tensor, Tensor]], side: int) -> Tensor:
    return torch.cat([part[side] for part in parts])


def gathered_penalty(branches: Iterable[Branch]) -> list[Tensor]:
    """The weighted sign loss of all sites, a scalar for each block of rows.

    Args:
        branches: Those that :func:`can_gather`.
    """
    terms = []
    for block in _blocks(branches):
        config = block[0].branch.config
        bits = torch.cat(
            [
                piece.branch.secret.bits[piece.start : piece.start + len(piece.rows)]
                for piece in block
            ]
        )
        responses = _respond(block)
        size = (len(bits), block[0].vectors.entries)
        loss = NORMALISED.penalty(responses, bits.to(responses.gamma.dtype), config.margin, [size])
        terms.append(config.sign_weight * loss)
    return terms


def _respond(block: list[_Piece]) -> Responses:
    with torch.autocast(device_type=block[0].rows.device.type, enabled=False):
        rows = torch.cat([piece.rows for piece in block])
        codes = torch.cat([piece.vectors.codes for piece in block])
        return normalised_responses([rows], [SignVectors(codes)])


def _blocks(branches: Iterable[Branch]) -> Iterator[list[_Piece]]:
    """Pieces with rows of one length, type, device and settings."""
    blocks: dict[tuple[object, ...], list[_Piece]] = {}
    for branch in branches:
        assert branch.weights is not None
        start = 0
        for rows, vectors in zip(
            branch.weights.windows(branch.secret.sides), branch.secret.sides, strict=True
        ):
            assert isinstance(vectors, SignVectors)
            config = branch.config
            key = (vectors.entries, rows.dtype, rows.device, config.margin, config.sign_weight)
            blocks.setdefault(key, []).append(_Piece(branch, rows, vectors, start))
            start += len(rows)
    yield from blocks.values()
