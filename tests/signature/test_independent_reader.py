"""A mark read from two files in plain Python, from the description of the format alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import Tensor

import passportize as pp
import tests.support.independent_reader as independent
from passportize.release.claim_file import write_claim
from passportize.release.claim_format import check_claim, claim_from
from passportize.signature.model_key import ModelKey
from passportize.signature.reading import prepare_sites, read_signature
from passportize.signature.rows import anchor_rows
from passportize.signature.site import AnchorPart
from tests.signature.test_model_key import LAYOUT
from tests.signature.test_rows import weights_and_parts
from tests.support import ROOT
from tests.support.small_protected import PASSPORT, protected


@pytest.mark.parametrize("preset", ["keyed", "signature", "paper"])
def test_every_bit_is_read_without_this_library(preset: str, tmp_path: Path) -> None:
    made = protected(preset)
    weights = {name: tensor.contiguous() for name, tensor in made.plain.state_dict().items()}
    write_claim(made.claim, tmp_path / "claim")
    save_file(weights, tmp_path / "weights.safetensors")
    found, wanted = independent.read(
        (tmp_path / "claim").read_bytes(),
        (tmp_path / "weights.safetensors").read_bytes(),
        bytes(range(32)),
        PASSPORT.message,
    )
    verdict = pp.verify(tmp_path / "weights.safetensors", PASSPORT, tmp_path / "claim")
    matched = sum(a == b for a, b in zip(found, wanted, strict=True))
    assert (matched, len(found)) == (verdict.matched, verdict.total)
    assert verdict.total == 192 and matched > 170
    assert independent.log2_tail(matched, 192) == pytest.approx(verdict.log2_p, abs=1e-9)
    assert (
        independent.claim_digest(
            made.claim.header(), independent.safetensors((tmp_path / "claim").read_bytes())[1]
        )
        == made.claim.digest()
    )


@pytest.mark.parametrize("inputs", ["", "ab" * 32])
def test_named_inputs_are_part_of_the_key(inputs: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 90), torch.nn.LayerNorm(90))
    config = pp.PassportConfig.signature(inputs=inputs)
    model = pp.passportize(model, PASSPORT, config=config, example_inputs=torch.zeros(2, 20))
    pp.embed_signature(model)
    pp.save_claim(model, tmp_path / "claim")
    weights = pp.unpassportize(model).state_dict()
    found, wanted = independent.read(
        (tmp_path / "claim").read_bytes(), save(weights), bytes(range(32)), PASSPORT.message
    )
    assert found == wanted and len(found) == 90
    other = replace(pp.load_claim(tmp_path / "claim").marking.config, inputs="cd" * 32)
    assert not pp.verify(model, PASSPORT, config=other).accepted
    assert pp.verify(model, PASSPORT, config=config).accepted


def test_a_stranger_reads_coins(tmp_path: Path) -> None:
    made = protected("keyed")
    torch.manual_seed(1)
    weights = {name: torch.randn(shape) for name, shape in made.claim.marking.shapes.items()}
    write_claim(made.claim, tmp_path / "claim")
    claim = (tmp_path / "claim").read_bytes()
    found, wanted = independent.read(claim, save(weights), bytes(range(32)), PASSPORT.message)
    verdict = pp.verify(weights, PASSPORT, tmp_path / "claim")
    matched = sum(a == b for a, b in zip(found, wanted, strict=True))
    assert abs(matched - 96) < 4 * 7
    assert verdict.accepted is False


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_released_weights_of_every_type(dtype: torch.dtype, tmp_path: Path) -> None:
    made = protected("signature")
    weights = {name: made.plain.state_dict()[name].to(dtype) for name in made.claim.marking.shapes}
    del weights["conv2.weight"]  # its bits keep their places
    write_claim(made.claim, tmp_path / "claim")
    claim = (tmp_path / "claim").read_bytes()
    found, wanted = independent.read(claim, save(weights), bytes(range(32)), PASSPORT.message)
    verdict = pp.verify(weights, PASSPORT, tmp_path / "claim")
    matched = sum(a == b for a, b in zip(found, wanted, strict=True))
    assert (matched, len(found)) == (verdict.matched, verdict.total)
    assert verdict.total == 160 and verdict.accepted


@pytest.mark.parametrize("preset", ["keyed", "paper"])
def test_rows_of_odd_numbers_are_read_alike(preset: str, tmp_path: Path) -> None:
    """No numbers, infinite, zero, subnormal and huge ones: every bit, not the number of matches."""
    made, key = protected(preset), ModelKey(PASSPORT, protected(preset).claim.layout)
    weights = {name: made.plain.state_dict()[name].clone() for name in made.claim.marking.shapes}
    for weight in weights.values():
        rows = weight.flatten(1)
        rows[0, 1], rows[1, 2], rows[2, 0] = torch.nan, torch.inf, -torch.inf
        rows[3] = torch.inf
        rows[4] = torch.tensor([torch.inf, -torch.inf]).repeat(rows.shape[1])[: rows.shape[1]]
        rows[5] = 0.0
        rows[6] *= 2.0**-133
        rows[7] *= 2.0**100
    write_claim(made.claim, tmp_path / "claim")
    claim = (tmp_path / "claim").read_bytes()
    found, _ = independent.read(claim, save(weights), bytes(range(32)), PASSPORT.message)
    names = {name: name for name in weights}
    prepared = prepare_sites(made.claim.layout, weights, names)
    assert read_signature(key, made.claim.layout, prepared).bits.tolist() == found


def test_the_digest_of_the_weights_is_that_of_the_claim() -> None:
    made = protected("keyed")
    raw = save({name: tensor.contiguous() for name, tensor in made.plain.state_dict().items()})
    assert independent.weights_digest(independent.safetensors(raw)[1]) == made.claim.weights


@settings(deadline=None, max_examples=100)
@given(weights_and_parts(), st.integers(1, 3), st.booleans(), st.booleans())
def test_rows_of_every_kind_are_the_same(
    case: tuple[Tensor, AnchorPart], experts: int, centred: bool, less_mean_row: bool
) -> None:
    weight, part = case[0].detach(), replace(case[1], centred=centred, less_mean_row=less_mean_row)
    if experts > 1 and not centred:
        part = replace(part, expert_shape=tuple(weight.shape))
        weight = torch.stack([weight.flatten() * (index + 1) for index in range(experts)])
    found = independent.rows(weight.flatten().tolist(), tuple(weight.shape), part.to_dict())
    expected = anchor_rows(weight, part).double()
    torch.testing.assert_close(
        torch.tensor(found, dtype=torch.float64), expected, atol=1e-9, rtol=1e-9
    )


def test_the_known_claim_has_the_digest_of_the_description() -> None:
    page = (ROOT / "docs" / "claim_format.md").read_text()
    *_, header, digest = (line.strip() for line in page.splitlines() if line.startswith("    "))
    claim = claim_from(header, {})
    check_claim(claim)
    assert claim.header() == header
    assert independent.claim_digest(header, {}) == claim.digest() == digest
    assert claim.layout == replace(
        LAYOUT,
        **{name: getattr(LAYOUT, name)[1:] for name in ("sites", "shapes")},
        responses=("normalised",),
    )
