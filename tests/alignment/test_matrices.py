"""Matrices between two models, against matrices that are known and against a general optimiser."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from passportize.alignment.attention_heads import match_heads
from passportize.alignment.matrices import Pair, explain, find_matrices, inverse_of
from passportize.alignment.spaces import MatrixKind


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def centred_rotation(size: int) -> Tensor:
    start = torch.cat([torch.ones(size, 1).double(), drawn(size, size - 1, seed=1)], dim=1)
    basis = torch.linalg.qr(start)[0]
    inner = torch.eye(size).double()
    inner[1:, 1:] = torch.linalg.qr(drawn(size - 1, size - 1, seed=2))[0]
    return basis @ inner @ basis.t()


def turning(factors: Tensor) -> Tensor:
    """A rotation with a factor for each row of two numbers."""
    real, imaginary = factors.unbind(-1)
    return torch.stack([real, -imaginary, imaginary, real], -1).view(-1, 2, 2)


TRUE = {
    MatrixKind.LINEAR: drawn(2, 6, 6, seed=3),
    MatrixKind.ORTHOGONAL: torch.linalg.qr(drawn(2, 6, 6, seed=4))[0],
    MatrixKind.CENTRED: centred_rotation(6)[None],
    MatrixKind.ROTARY: turning(drawn(2, 2, seed=9)),
}


def pairs_of(matrices: Tensor, kind: MatrixKind, noise: float = 0.0) -> list[Pair]:
    blocks, size = matrices.shape[:2]
    writer, reader = drawn(blocks, size, 20, seed=5), drawn(blocks, size, 30, seed=6)
    if kind is MatrixKind.CENTRED:
        writer, reader = (x - x.mean(1, keepdim=True) for x in (writer, reader))
    contra = torch.linalg.inv(matrices).transpose(1, 2)
    return [
        Pair(writer, matrices @ writer + noise * drawn(blocks, size, 20, seed=7), True),
        Pair(reader, contra @ reader + noise * drawn(blocks, size, 30, seed=8), False),
    ]


@pytest.mark.parametrize("kind", list(MatrixKind))
@pytest.mark.parametrize("which", [slice(0, 1), slice(0, 2)])
def test_known_matrices_are_found(kind: MatrixKind, which: slice) -> None:
    true = TRUE[kind]
    found = find_matrices(kind, pairs_of(true, kind)[which])
    assert torch.allclose(found, true, atol=1e-4)
    assert torch.allclose(
        inverse_of(found) @ true, torch.eye(true.shape[-1]).double().expand_as(true), atol=1e-3
    )


def test_least_squares_against_gradient_descent() -> None:
    pairs = pairs_of(TRUE[MatrixKind.LINEAR][:1], MatrixKind.LINEAR, noise=0.2)

    def loss(matrix: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for pair in pairs:
            ends = (pair.own, pair.other) if pair.writes else (pair.other, pair.own)
            turned = matrix if pair.writes else matrix.transpose(1, 2)
            total = total + (ends[1] - turned @ ends[0]).square().sum() / ends[0].square().mean()
        return total

    found = find_matrices(MatrixKind.LINEAR, pairs)
    variable = torch.zeros(1, 6, 6, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([variable], max_iter=500, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(variable)
        value.backward()
        return value

    optimizer.step(closure)
    assert float(loss(found)) <= float(loss(variable.detach())) * (1 + 1e-4)


def test_more_of_it_helps_against_noise() -> None:
    true = TRUE[MatrixKind.LINEAR]
    errors = [
        float((find_matrices(MatrixKind.LINEAR, pairs) - true).norm())
        for pairs in (
            pairs_of(true, MatrixKind.LINEAR, 0.3)[:1],
            pairs_of(true, MatrixKind.LINEAR, 0.3),
        )
    ]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("kind", list(MatrixKind))
def test_only_what_is_exact_needs_no_second_look(kind: MatrixKind) -> None:
    exact, noisy = pairs_of(TRUE[kind], kind), pairs_of(TRUE[kind], kind, noise=1e-3)
    found = find_matrices(kind, exact)
    assert explain(found, exact)
    assert not explain(found, [exact[0], noisy[1]])
    assert not explain(find_matrices(kind, noisy), noisy)


def test_heads_are_known_by_products_and_subspaces() -> None:
    """Whatever matrices act inside heads, and however these change places."""
    queries, keys, values = (drawn(3, 4, 12, seed=seed) for seed in (11, 12, 13))
    order = torch.tensor([2, 0, 1])
    inside = drawn(3, 4, 4, seed=14)
    contra = torch.linalg.inv(inside).transpose(1, 2)
    moved = (inside @ queries)[order], (contra @ keys)[order], (inside @ values)[order]
    score = match_heads((queries, moved[0]), (keys, moved[1]))
    assert torch.equal(score.argmax(0), order) and float(score.amax(0).min()) > 0.999
    score = match_heads((values, moved[2]), None)
    assert torch.equal(score.argmax(0), order) and float(score.amax(0).min()) > 0.999


@pytest.mark.parametrize("size", [2.0**-60, 2.0**60])
def test_heads_of_tiny_and_huge_numbers(size: float) -> None:
    """In single precision, where a product of four of them is no number."""
    queries, keys = (drawn(3, 4, 12, seed=seed).float() for seed in (11, 12))
    order = torch.tensor([1, 2, 0])
    moved = (queries[order] * size, queries * size), (keys[order] * size, keys * size)
    score = match_heads(*moved)
    assert torch.equal(score.argmax(1), order) and float(score.amax(1).min()) > 0.999


def rotated(rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Centred columns of a rank, in single precision, the same rotated, and the rotation."""
    rotation = centred_rotation(12)
    columns = drawn(12, rank, seed=10)
    own = (columns - columns.mean(0)) @ drawn(rank, 40, seed=11)
    return own[None].float(), (rotation @ own)[None].float(), rotation


@pytest.mark.parametrize("rank", [7, 10, 11])
def test_what_nothing_is_said_of_is_not_mixed_with_the_vector_of_ones(rank: int) -> None:
    own, other, _ = rotated(rank)
    found = find_matrices(MatrixKind.CENTRED, [Pair(own, other, True)])[0]
    ones = torch.ones(12, dtype=torch.float64)
    # Still a rotation, also where several would do, and one that does.
    torch.testing.assert_close(found @ found.T, torch.eye(12, dtype=torch.float64))
    torch.testing.assert_close(found @ ones, ones)
    torch.testing.assert_close(found @ own[0].double(), other[0].double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [2.0**-60, 2.0**70])
def test_rotations_of_tiny_and_huge_numbers(size: float) -> None:
    own, other, rotation = rotated(11)
    found = find_matrices(MatrixKind.CENTRED, [Pair(own * size, other * size, True)])[0]
    torch.testing.assert_close(found, rotation, atol=1e-5, rtol=0)


def test_a_matrix_that_explains_a_part_of_very_many_columns_explains_them() -> None:
    """Also where most columns are zero, as those of kernels of which one place is in use."""
    rotation, pairs = TRUE[MatrixKind.ORTHOGONAL], []
    for seed in range(40):
        own = torch.zeros(2, 6, 40, 9, dtype=torch.float64)
        own[..., 4] = drawn(2, 6, 40, seed=seed)
        pairs.append(Pair(own.flatten(2), rotation @ own.flatten(2), True))
    found = find_matrices(MatrixKind.ORTHOGONAL, pairs)
    torch.testing.assert_close(found, rotation)
    assert explain(found, pairs)
    assert not explain(found + 1e-3, pairs)
