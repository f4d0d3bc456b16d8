"""The two ways in which rows answer, and that all others depend on these objects alone."""

from __future__ import annotations

import pytest
import torch

from passportize.config import PassportConfig
from passportize.passport.derivation import LabelledStream
from passportize.passport.images import PassportImages
from passportize.signature.formulations import (
    FORMULATIONS,
    NORMALISED,
    RAW,
    formulation_of,
    part_vectors,
)
from passportize.signature.response import (
    Responses,
    normalised_responses,
    raw_responses,
    raw_sign_penalty,
    sign_penalty,
)
from passportize.signature.site import AnchorPart
from passportize.signature.turning import moved_rows, turned_rows
from passportize.signature.vectors import draw_raw_vectors, draw_sign_vectors

KEYED = LabelledStream(bytes(32))
PART = AnchorPart("conv.weight", 6)
PATCHES = {"conv.weight": torch.arange(20.0).reshape(1, 10, 2)}


def drawn(formulation, images=None, part=PART, fan_in=10):
    return formulation.draw(KEYED, images, "bn", 3, part, fan_in)


def pictures(patches):
    return PassportImages(torch.ones(1, 2, 2), torch.ones(1, 2, 2), patches)


def test_every_preset_has_one() -> None:
    assert FORMULATIONS == {"normalised": NORMALISED, "raw": RAW}
    assert formulation_of(PassportConfig.keyed()) is NORMALISED
    assert formulation_of(PassportConfig.signature()) is NORMALISED
    assert formulation_of(PassportConfig.paper()) is RAW


def test_vectors_are_drawn_under_the_label_of_site_and_part() -> None:
    expected = draw_sign_vectors(KEYED, "bn", 3, 6, 10)
    assert torch.equal(drawn(NORMALISED).codes, expected.codes)
    assert torch.equal(drawn(NORMALISED, pictures(PATCHES)).codes, expected.codes)
    assert torch.equal(drawn(RAW).values, draw_raw_vectors(KEYED, "bn", 3, 10).values)


def test_pictures_stand_in_for_raw_vectors_where_there_are_some() -> None:
    assert torch.equal(drawn(RAW, pictures(PATCHES)).values, PATCHES["conv.weight"][0])
    other = AnchorPart("fc.weight", 6)
    assert torch.equal(drawn(RAW, pictures(PATCHES), other).values, drawn(RAW).values)


def test_responses_penalties_and_turning_are_those_of_the_functions() -> None:
    torch.manual_seed(0)
    rows, bits = torch.randn(6, 10, dtype=torch.float64), torch.ones(6, dtype=torch.float64)
    for formulation, respond, turn in (
        (NORMALISED, normalised_responses, turned_rows),
        (RAW, raw_responses, moved_rows),
    ):
        side = drawn(formulation)
        responses = formulation.respond([rows], [side])
        for ours, expected in zip(responses, respond([rows], [side]), strict=True):
            assert torch.equal(ours, expected)
        loss = formulation.penalty(responses, bits, 0.7, [(6, 10)])
        if formulation is RAW:
            assert torch.equal(loss, raw_sign_penalty(responses, bits, 0.7))
        else:
            assert torch.equal(loss, sign_penalty(responses, bits, 0.7, [(6, 10)]))
        turned = formulation.turned(rows, side, bits, 0.7)
        assert torch.equal(turned, turn(rows, side, bits, 0.7))
        after = formulation.respond([turned], [side])
        assert float(formulation.penalty(after, bits, 0.7, [(6, 10)])) < 1e-9
        assert bool((after.gamma >= 0.69).all())


def test_confidence_is_free_of_scale() -> None:
    torch.manual_seed(0)
    rows = torch.randn(6, 10)
    rows[2] = 0
    for formulation in FORMULATIONS.values():
        side = drawn(formulation)
        one, two = (
            formulation.confidence(formulation.respond([rows * scale], [side]))
            for scale in (1.0, 1e4)
        )
        assert one.dtype == torch.float64 and one[2] == 0
        torch.testing.assert_close(one, two)
    responses = Responses(*(torch.tensor([value]) for value in (-3.0, 1.0, 2.0, -6.0)))
    assert float(NORMALISED.confidence(responses)) == 3.0


@pytest.mark.parametrize("groups", [1, 3])
def test_part_vectors_are_the_patch_of_the_layer(groups: int) -> None:
    patch = torch.arange(groups * 20.0).reshape(groups, 10, 2)
    part = AnchorPart("conv.weight", 6, groups=groups)
    found = part_vectors({"conv.weight": patch}, part)
    assert found is not None
    assert torch.equal(found.values, patch if groups > 1 else patch[0])
    assert part_vectors({}, part) is None
