"""The owner's inputs in a file: their digest, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import passportize as pp
from passportize.errors import DatasetError, InvalidArgument
from passportize.release.inputs_file import inputs_digest, read_inputs

BATCHES = [torch.arange(12.0).reshape(2, 6), torch.arange(6.0).reshape(1, 6)]


def test_a_known_answer() -> None:
    assert inputs_digest(BATCHES) == (
        "a0e2e4569f83205680c8b0dbde53572628604e82d5635e47b1b7c4952555cf36"
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = tmp_path / "acme.inputs.safetensors"
    digest = pp.save_inputs(BATCHES, file)
    read = pp.load_inputs(file)
    assert all(map(torch.equal, read, BATCHES)) and len(read) == 2
    assert digest == inputs_digest(read) == inputs_digest(iter(BATCHES))
    assert [len(batch) for batch in read_inputs(file, digest, "test")] == [2, 1]
    with pytest.raises(DatasetError, match="exists"):
        pp.save_inputs(BATCHES, file)
    assert pp.save_inputs(BATCHES[:1], file, overwrite=True) != digest


def test_labels_are_left_out_and_dicts_keep_their_names(tmp_path: Path) -> None:
    labelled = [(batch, torch.zeros(len(batch))) for batch in BATCHES]
    assert inputs_digest(labelled) == inputs_digest(BATCHES)
    named = [{"input_ids": torch.ones(2, 3, dtype=torch.int64), "mask.of": torch.ones(2, 3)}]
    file = tmp_path / "acme.inputs.safetensors"
    digest = pp.save_inputs(named * 11, file)
    (*_, last) = pp.load_inputs(file)
    assert isinstance(last, dict) and set(last) == {"input_ids", "mask.of"}
    assert last["input_ids"].dtype == torch.int64
    assert inputs_digest(pp.load_inputs(file)) == digest


@given(
    st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3), min_size=1, max_size=4),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.int64]),
)
def test_order_shape_type_and_values_enter(shapes: list[list[int]], dtype: torch.dtype) -> None:
    batches = [torch.zeros(shape).to(dtype) for shape in shapes]
    digest = inputs_digest(batches)
    assert inputs_digest([batch.clone() for batch in batches]) == digest
    assert inputs_digest([*batches, batches[0]]) != digest
    assert inputs_digest([batch.double() for batch in batches]) != digest
    if shapes != shapes[::-1]:
        assert inputs_digest(batches[::-1]) != digest
    full = [batch for batch in batches if batch.numel()]
    if full:
        full[0].view(-1)[0] = 1
        assert inputs_digest(batches) != digest


@pytest.mark.parametrize(
    "batches", [[], torch.zeros(2, 3), ["text"], [[torch.zeros(1)] * 3], [{}], [{1: torch.ones(1)}]]
)
def test_what_is_no_batch_is_refused(batches: object, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="batch"):
        pp.save_inputs(batches, tmp_path / "x.safetensors")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "names", [["weight"], ["00"], ["-1"], ["1"], ["0", "0.a"], ["0.a", "2.a"], ["²"]]
)
def test_other_files_are_refused(names: list[str], tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    save_file({name: torch.zeros(1) for name in names}, file)
    with pytest.raises(DatasetError, match="no file of inputs"):
        pp.load_inputs(file)


def test_damaged_and_missing_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "acme.inputs.safetensors"
    pp.save_inputs(BATCHES, file)
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(DatasetError, match="no file of inputs"):
        pp.load_inputs(file)
    with pytest.raises(DatasetError, match="check the path"):
        pp.load_inputs(tmp_path / "nowhere")


def test_inputs_that_were_not_named_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="before the key was drawn"):
        read_inputs(BATCHES, "", "verify")
    with pytest.raises(InvalidArgument, match="not the inputs that the claim names"):
        read_inputs(BATCHES, "0" * 64, "verify")
    for wrong in ("abc", "0" * 63, "G" * 64, 3, None):
        with pytest.raises(InvalidArgument, match="inputs="):
            pp.PassportConfig.signature(inputs=wrong)


def test_the_key_depends_on_them_and_claims_without_stay_as_they_were() -> None:
    plain = pp.PassportConfig.signature()
    named = pp.PassportConfig.signature(inputs="ab" * 32)
    assert "inputs" not in plain.to_dict() and named.to_dict()["inputs"] == "ab" * 32
    assert pp.PassportConfig.from_dict(named.to_dict()) == named
