"""Vectors that all rows share are read out of the weights; vectors of each row's own are not."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

import passportize as pp
from passportize.attacks.spectral import find_direction, turn_directions_over, turn_rows_over
from passportize.errors import InvalidArgument
from passportize.passport.derivation import LabelledStream
from passportize.release.claim import claim_of
from passportize.signature.response import normalised_responses
from passportize.signature.turning import turned_rows
from passportize.signature.vectors import SignVectors, draw_sign_vectors
from tests.support.small_protected import PASSPORT

KEY = LabelledStream(bytes(range(32)))


def marked(rows: int, entries: int, shared: bool) -> tuple[Tensor, SignVectors, Tensor]:
    """Rows that carry their bits with a margin of two deviations, and their vectors and bits."""
    generator = torch.Generator().manual_seed(rows)
    vectors = draw_sign_vectors(KEY, "norm", 0, rows, entries)
    if shared:  # the scheme as it was: the vectors of one row for all
        vectors = SignVectors(vectors.codes[:1].expand(rows, -1).contiguous())
    bits = torch.randint(0, 2, (rows,), generator=generator).double() * 2 - 1
    plain = torch.randn(rows, entries, generator=generator, dtype=torch.float64)
    turned = turned_rows(plain, vectors, bits, 2.0)
    assert turned is not None
    return turned, vectors, bits


def matched(rows: Tensor, vectors: SignVectors, bits: Tensor) -> int:
    return int(((normalised_responses([rows], [vectors]).gamma >= 0) == (bits > 0)).sum())


@pytest.mark.parametrize(("rows", "entries"), [(256, 64), (512, 128), (2048, 256)])
def test_shared_vectors_are_found_and_turned_over(rows: int, entries: int) -> None:
    weight, vectors, bits = marked(rows, entries, shared=True)
    assert matched(weight, vectors, bits) == rows
    direction = find_direction(weight)
    assert direction.missing < 0.05
    s, t, _ = vectors.signs(torch.float64)[:, 0]
    alike = max(abs(float(direction.vector @ s)), abs(float(direction.vector @ t))) / entries
    assert alike > 0.95
    turned = turn_rows_over(weight, direction, torch.Generator().manual_seed(1))
    # Half of the bits are turned over: no more than chance is left.
    assert 0.4 * rows < matched(turned, vectors, bits) < 0.6 * rows


@pytest.mark.parametrize(("rows", "entries"), [(64, 64), (256, 64), (512, 128), (2048, 256)])
def test_vectors_of_each_rows_own_leave_no_direction(rows: int, entries: int) -> None:
    weight, vectors, bits = marked(rows, entries, shared=False)
    assert matched(weight, vectors, bits) == rows
    unmarked = torch.randn(
        rows, entries, generator=torch.Generator().manual_seed(9), dtype=torch.float64
    )
    found, nothing = find_direction(weight), find_direction(unmarked)
    assert found.missing == pytest.approx(nothing.missing, rel=0.15)
    for _ in range(2):
        weight = turn_rows_over(weight, found, torch.Generator().manual_seed(1))
        found = find_direction(weight)
    assert matched(weight, vectors, bits) >= 0.99 * rows


def test_a_whole_network_keeps_its_mark() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=10)
    pp.passportize(model, PASSPORT, config=pp.PassportConfig.signature())
    pp.embed_signature(model)
    claim = claim_of(model)
    plain = nn.Module.eval(pp.unpassportize(model))
    found = turn_directions_over(plain, torch.Generator().manual_seed(0), times=1)
    assert len(found) > 2
    verdict = pp.verify(plain, PASSPORT, claim)
    assert verdict.accepted and verdict.matched >= 0.99 * verdict.total


def test_too_few_rows() -> None:
    with pytest.raises(InvalidArgument, match="64 rows"):
        find_direction(torch.randn(10, 64))
