"""How pictures were prepared: recorded, read strictly, and part of no key and no bit."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import passportize as pp
from passportize.errors import ClaimFileError, InvalidArgument
from passportize.release import Preprocessing
from passportize.release.claim_file import read_claim, write_claim
from passportize.release.claim_format import claim_from
from tests.support.small_protected import PASSPORT, live

DIGITS = Preprocessing((1, 8, 8), (0.5,), (0.25,))
RECORD = DIGITS.to_dict()
SHARES = st.floats(0.01, 8)


@given(
    channels=st.integers(1, 4),
    side=st.integers(1, 999),
    number=st.floats(-1e6, 1e6),
    deviation=st.floats(1e-6, 1e6),
    share=SHARES,
)
def test_it_comes_back_as_it_was(channels, side, number, deviation, share):
    given_ = Preprocessing(
        (channels, side, side + 1), (number,) * channels, (deviation,) * channels, crop_pct=share
    )
    assert Preprocessing.from_dict(json.loads(json.dumps(given_.to_dict()))) == given_
    assert Preprocessing.from_timm(given_.to_dict()) == given_


def test_a_claim_keeps_it_and_its_bits_do_not_hang_on_it(tmp_path):
    model = copy.deepcopy(live("keyed"))
    without = pp.save_claim(model, tmp_path / "without")
    claim = pp.save_claim(model, tmp_path / "with", preprocessing=DIGITS)
    read = pp.load_claim(tmp_path / "with")
    assert read.preprocessing == DIGITS and pp.load_claim(tmp_path / "without") is not None
    assert pp.load_claim(tmp_path / "without").preprocessing is None
    assert read.digest() == claim.digest() != without.digest()
    assert read.layout.digest() == without.layout.digest()
    verdicts = [pp.verify(pp.host_state_dict(model), PASSPORT, each) for each in (read, without)]
    assert verdicts[0].strength == verdicts[1].strength


@pytest.mark.parametrize(
    "change",
    [
        {"input_size": [1, 8]},
        {"input_size": [1, 8, 0]},
        {"input_size": [1, 8, 8.0]},
        {"input_size": [1, 1 << 20, 1 << 20]},
        {"input_size": [True, 8, 8]},
        {"mean": [0.5, 0.5]},
        {"mean": [0]},
        {"mean": 0.5},
        {"mean": [0.0] * 65},
        {"std": [0.0]},
        {"std": [-1.0]},
        {"std": [1e999]},
        {"interpolation": "magic"},
        {"interpolation": None},
        {"crop_pct": 0.0},
        {"crop_pct": 1},
        {"crop_mode": ""},
        {"more": 1},
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(change, tmp_path):
    record = {**RECORD, **change}
    with pytest.raises((ValueError, InvalidArgument)):
        Preprocessing.from_dict(record)
    claim = pp.save_claim(copy.deepcopy(live("keyed")), tmp_path / "c", preprocessing=DIGITS)
    header = json.loads(claim.header())
    header["preprocessing"] = record
    with pytest.raises((ValueError, InvalidArgument)):
        claim_from(json.dumps(header), {})


def test_a_claim_whose_record_was_changed_is_damaged(tmp_path):
    path = tmp_path / "c"
    claim = pp.save_claim(copy.deepcopy(live("keyed")), path, preprocessing=DIGITS)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"bicubic", b"nearest"))
    with pytest.raises(ClaimFileError, match="digest"):
        read_claim(path)
    other = replace(claim, preprocessing=replace(DIGITS, interpolation="nearest"))
    write_claim(other, path, overwrite=True)
    assert read_claim(path).preprocessing == other.preprocessing


def test_what_timm_says_is_taken_over():
    data = pytest.importorskip("timm.data")
    settings = data.resolve_data_config({"img_size": 96, "mean": (0.1,) * 3, "std": (0.2,) * 3}, {})
    found = Preprocessing.from_timm(settings)
    assert found.input_size == (3, 96, 96) and found.mean == (0.1,) * 3
    assert "96 x 96" in str(found) and "mean 0.1, std 0.2" in str(found)
    with pytest.raises(InvalidArgument, match="std"):
        Preprocessing.from_timm({"input_size": (3, 9, 9), "mean": (0.1,) * 3})
