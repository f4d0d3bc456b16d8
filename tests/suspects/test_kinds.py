"""Each kind of file, made by the exporter that people use, is read to the last bit."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

import passportize as pp
from benchmarks.suspects.kinds_made import MADE
from passportize.signature.matching import BY_ASSIGNMENT, BY_LAYOUT, BY_NAME
from passportize.suspects import KINDS, read_suspect
from tests.support.found_files import OWNER, marked, write

# How each kind is called, and how tensors are found in it.
EXPECTED = {
    "torch state dict": ("a torch checkpoint", BY_NAME),
    "training checkpoint, numpy scalar": ("a torch checkpoint", BY_NAME),
    "old torch format": ("a torch checkpoint of the old format", BY_NAME),
    "whole model, pickled": ("a torch checkpoint", BY_NAME),
    "pickle without torch.save": ("a pickle", BY_NAME),
    "torchao tensors": ("a torch checkpoint", BY_NAME),
    "bitsandbytes, 8 bits": ("a torch checkpoint", BY_NAME),
    "bitsandbytes, 4 bits": ("a torch checkpoint", BY_NAME),
    "pruned: originals and masks": ("a torch checkpoint", BY_NAME),
    "weight norm": ("a torch checkpoint", BY_NAME),
    "weight norm, parametrised": ("a torch checkpoint", BY_NAME),
    "LoRA, state dict": ("a torch checkpoint", BY_NAME),
    "LoRA, folder with its base": ("a folder of weights", BY_NAME),
    "safetensors": ("a safetensors file", BY_NAME),
    "safetensors shards": ("a list of shards", BY_NAME),
    "torch shards": ("a list of shards", BY_NAME),
    "folder for the hub": ("a folder of weights", BY_NAME),
    "torch.distributed": ("a torch.distributed checkpoint", BY_NAME),
    "TorchScript": ("a TorchScript archive", BY_NAME),
    "TorchScript, frozen": ("a TorchScript archive", BY_ASSIGNMENT),
    "TorchScript for phones": ("a TorchScript archive", BY_NAME),
    "exported program": ("an exported program", BY_NAME),
    "ONNX": ("an ONNX model", BY_NAME),
    "ONNX, older exporter": ("an ONNX model", BY_ASSIGNMENT),
    "ONNX, external data": ("an ONNX model", BY_NAME),
    "ONNX, dynamic": ("an ONNX model", BY_ASSIGNMENT),
    "npz": ("an npz archive", BY_NAME),
    "npz, packed": ("an npz archive", BY_NAME),
    "GGUF": ("a GGUF file", BY_NAME),
    "TensorFlow Lite": ("a TensorFlow Lite model", BY_LAYOUT),
    "Keras archive": ("a Keras archive", BY_LAYOUT),
    "Keras h5": ("an HDF5 file", BY_LAYOUT),
    "Keras weights": ("an HDF5 file", BY_LAYOUT),
    "Core ML package": ("a Core ML package", BY_ASSIGNMENT),
    "Core ML network": ("a Core ML model", BY_ASSIGNMENT),
}
# These take seconds each, and half precision is read by the same lines; the benchmark has them.
SLOW_HALVES = ("ONNX", "ONNX, external data", "Core ML package", "Core ML network")
ROWS = [
    (kind, precision)
    for kind, makers in MADE.items()
    for precision in makers
    if precision != "half" or kind not in SLOW_HALVES
]
NEEDED = {
    "torchao": "torchao",
    "bitsandbytes": "bitsandbytes",
    "LoRA": "peft",
    "ONNX": "onnxruntime",
    "GGUF": "gguf",
    "TensorFlow": "flatbuffers",
    "Keras": "keras",
    "Core ML": "coremltools",
}


def test_the_table_is_whole() -> None:
    assert set(EXPECTED) == set(MADE) and len(MADE) >= 25
    assert {name for name, _ in EXPECTED.values()} <= {kind.name for kind in KINDS}


@pytest.mark.parametrize(("kind", "precision"), ROWS)
def test_bits_of_every_kind(
    kind: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    for start, package in NEEDED.items():
        if kind.startswith(start):
            pytest.importorskip(package)
    path = write(MADE[kind][precision], tmp_path / "made")
    claim = marked()[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = read_suspect(path)
        verdict = pp.verify(path, OWNER, claim)
    name, matched_by = EXPECTED[kind]
    assert opened.kind == name
    assert verdict.accepted and verdict.total == claim.marking.layout.bits
    # Fewer bits of a weight take some of its rows' bits along.
    assert verdict.matched >= verdict.total - (12 if precision == "int8" else 0)
    if precision == "plain":
        assert verdict.matched_by == matched_by
    assert opened.common or any(name in note for note in verdict.notes)
    assert not any(tensor.requires_grad for tensor in opened.tensors.values())
