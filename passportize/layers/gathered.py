"""Responses, private factors and sign loss of all sites of a model in a few operations.

The rows that answer are gathered in a block or a few, and what is computed of them is computed for
the whole block: once for each step, what the sign loss asks for included. So it is where weights
are whole when the root is called; the layers of sharded models (FSDP) answer for themselves, one
by one, when their weights are there.

The private factors take the responses as constants: what bits and gauge are is decided by the sign
loss alone. Its node in the graph is made after the forward pass, so that its backward pass comes
first and DDP sends every gradient as early as without passports.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from passportize.layers.computed import sources_of
from passportize.layers.private_branch import Branch
from passportize.layers.row_blocks import Block, Piece, blocks_of, gradients_of_sources
from passportize.signature.formulations import NORMALISED
from passportize.signature.response import (
    Responses,
    normalised_responses,
    reach_of,
    standardised,
)
from passportize.signature.sign_loss import Hinges, hinge_loss
from passportize.signature.vectors import SignVectors, turns_of

__all__ = ["Gathered", "can_gather"]


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


class Gathered:
    """What the rows of some sites answer now.

    Args:
        branches: Those that :func:`can_gather`.
        sign_due: Whether their sign loss will be asked for; otherwise it cannot be.

    Raises:
        PassportLocked: A branch was loaded without its secret.
    """

    def __init__(self, branches: Sequence[Branch], sign_due: bool) -> None:
        learns = sign_due and torch.is_grad_enabled()
        with torch.set_grad_enabled(learns):
            self.blocks = blocks_of(branches)
        self.answers: list[Tensor] = []
        self.losses: list[Tensor] = []
        self.gradients: list[Tensor] = []
        with torch.no_grad():
            for block in self.blocks:
                self._answer(block, sign_due, learns)

    def _answer(self, block: Block, sign_due: bool, learns: bool) -> None:
        with torch.autocast(device_type=block.pieces[0].rows.device.type, enabled=False):
            if torch.compiler.is_compiling():
                rows, codes = block.joined([piece.rows for piece in block.pieces])
            else:
                rows, codes = block.fill()
            signs = SignVectors(codes).signs(rows.dtype)
            products, length = standardised(rows, signs)
            turn = torch.copysign(length, products[0]).sign_()
            if sign_due and not torch.compiler.is_compiling():
                loss, gradient = hinge_loss(
                    rows, signs, products, length, turn, _hinges(block, rows)
                )
                self.losses.append(loss)
                if learns:
                    block.level(gradient)
                    self.gradients.append(gradient)
        products[1].mul_(turn).mul_(turns_of(signs))
        self.answers.append(torch.tanh(products[1:]))

    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """``tanh(q u)`` and ``tanh(v)`` of every site by name, ``[channels]``; no gradient."""
        sides: dict[str, dict[int, Tensor]] = {}
        for block, answers in zip(self.blocks, self.answers, strict=True):
            parts = answers.split_with_sizes(block.counts, dim=1)
            for piece, part in zip(block.pieces, parts, strict=True):
                sides.setdefault(piece.branch.site.name, {})[piece.start] = part
        joined = {
            name: next(iter(parts.values()))
            if len(parts) == 1
            else torch.cat([parts[start] for start in sorted(parts)], dim=1)
            for name, parts in sides.items()
        }
        return {name: (both[0], both[1]) for name, both in joined.items()}

    def penalty(self) -> Tensor:
        """The weighted sign loss of all sites, a scalar.

        To be asked for once.
        """
        pieces = [piece for block in self.blocks for piece in block.pieces]
        if torch.compiler.is_compiling():
            return _plain_penalty(self.blocks, [piece.source for piece in pieces])
        losses = [loss.to(self.losses[0].device) for loss in self.losses]
        loss = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
        if not self.gradients:
            return loss
        gradients, self.gradients = self.gradients, []
        sources = {id(piece.source): piece.source for piece in pieces}
        penalty: Tensor = _SignLoss.apply(  # type: ignore[no-untyped-call]
            self.blocks, [loss], gradients, *sources.values()
        )
        return penalty


def _hinges(block: Block, rows: Tensor) -> Hinges:
    table = rows.new_zeros(2, len(rows))
    configs = [piece.branch.config for piece in block.pieces]
    entries = [piece.vectors.entries for piece in block.pieces]
    torch._foreach_add_(
        [*table[0].split_with_sizes(block.counts), *table[1].split_with_sizes(block.counts)],
        [reach_of(config.margin, each) for config, each in zip(configs, entries, strict=True)]
        + [
            config.sign_weight / math.sqrt(each)
            for config, each in zip(configs, entries, strict=True)
        ],
    )
    return Hinges(_bits(block.pieces).to(rows.dtype), table[0], table[1])


def _bits(pieces: list[Piece]) -> Tensor:
    return torch.cat(
        [piece.branch.secret.bits[piece.start : piece.start + len(piece.rows)] for piece in pieces]
    )


class _SignLoss(torch.autograd.Function):
    """The sign loss of blocks by what their pieces are read from; all was computed before."""

    @staticmethod
    def forward(
        ctx: Any, blocks: list[Block], loss: list[Tensor], gradients: list[Tensor], *sources: Tensor
    ) -> Tensor:
        ctx.blocks = blocks
        ctx.numbers = {id(source): number for number, source in enumerate(sources)}
        ctx.save_for_backward(*gradients, *sources)
        return loss[0]

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        blocks: list[Block] = ctx.blocks
        tensors = ctx.saved_tensors
        gradients, sources = tensors[: len(blocks)], tensors[len(blocks) :]
        pieces = [piece for block in blocks for piece in block.pieces]
        numbers = [ctx.numbers[id(piece.source)] for piece in pieces]
        needed = [number for number in range(len(sources)) if ctx.needs_input_grad[3 + number]]
        found: list[Tensor | None] = [None] * len(sources)
        if torch.is_grad_enabled():
            # Somebody wants second derivatives: the plain formula has them.
            loss = _plain_penalty(blocks, [sources[number] for number in numbers])
            wanted = [sources[number] for number in needed]
            made = list(torch.autograd.grad(loss, wanted, slope, create_graph=True))
        else:
            order = {number: index for index, number in enumerate(needed)}
            by_rows = [
                part
                for block, gradient in zip(blocks, gradients, strict=True)
                for part in block.parts(gradient * -slope.to(gradient.device))
            ]
            places = [
                (order[number], piece, part)
                for number, piece, part in zip(numbers, pieces, by_rows, strict=True)
                if number in order
            ]
            made = gradients_of_sources([sources[number] for number in needed], places)
        for number, gradient in zip(needed, made, strict=True):
            found[number] = gradient
        return None, None, None, *found


def _plain_penalty(blocks: list[Block], sources: list[Tensor]) -> Tensor:
    """The weighted sign loss as its formula says, differentiable as often as wanted.

    Args:
        blocks: The blocks.
        sources: For every piece of them in order what it is read from.
    """
    terms = []
    for block in blocks:
        own, sources = sources[: len(block.pieces)], sources[len(block.pieces) :]
        with torch.autocast(device_type=own[0].device.type, enabled=False):
            rows, codes = block.joined(own)
            responses = normalised_responses([rows], [SignVectors(codes)])
            parts = (
                side.split_with_sizes(block.counts) for side in (*responses, _bits(block.pieces))
            )
            for piece, gamma, beta, gauge, length, bits in zip(block.pieces, *parts, strict=True):
                config = piece.branch.config
                loss = NORMALISED.penalty(
                    Responses(gamma, beta, gauge, length),
                    bits.to(gamma.dtype),
                    config.margin,
                    [(len(bits), piece.vectors.entries)],
                )
                terms.append(config.sign_weight * loss)
    return torch.stack([term.to(terms[0].device) for term in terms]).sum()
