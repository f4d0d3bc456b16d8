"""Core ML models: packages with a program and a file of weights, and networks in one file.

By the format's definitions, MIL.proto and NeuralNetwork.proto of coremltools, which is not needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from passportize.suspects.dtypes import nibbles
from passportize.suspects.protobuf import RUN, VARINT, Message, looks_like
from passportize.suspects.quantised import affine
from passportize.suspects.refusals import Damaged, Unsupported
from passportize.suspects.source import Found, Source
from passportize.suspects.window import Window, checked_size

__all__ = ["is_coreml", "is_coreml_package", "read_coreml", "read_coreml_package"]

_PROGRAM = 502
_NETWORKS = (500, 403, 303)
_MODEL = {1: VARINT, 10: VARINT, 2: RUN, **dict.fromkeys(range(200, 3001), RUN)}

# Types of a program, and those of its file of weights.
_TYPES = {
    1: torch.bool,
    10: torch.float16,
    11: torch.float32,
    12: torch.float64,
    13: torch.bfloat16,
    21: torch.int8,
    22: torch.int16,
    23: torch.int32,
    24: torch.int64,
    31: torch.uint8,
    32: torch.uint16,
}
_INT4, _UINT4 = 25, 35
_BLOB = 0xDEADBEEF
_ROOT = "@model_path/"
DEEPEST = 8


def is_coreml_package(source: Source) -> bool:
    """Whether a folder is a package of Core ML."""
    return source.is_folder and bool(_models(source.path))


def _models(folder: Path) -> list[Path]:
    return sorted((folder / "Data").glob("*/*.mlmodel"))[:2]


def is_coreml(source: Source) -> bool:
    """Whether a file is a message with the fields of a Core ML model."""
    return not source.is_folder and looks_like(source.window, _MODEL, {_PROGRAM, *_NETWORKS})


def read_coreml_package(source: Source) -> Found:
    """The weights of the model of a package."""
    model = _models(source.path)[0]
    return read_coreml(Source(model, source.key, source.budget))


def read_coreml(source: Source) -> Found:
    """Constants of a program, or weights of the layers of a network, by name."""
    model = Message(source.window)
    if _PROGRAM in model:
        return _Program(source).read(model.message(_PROGRAM))
    found = Found({})
    for number in _NETWORKS:
        if number in model:
            for layer in model.message(number).messages(1):
                _read_layer(layer, found)
    if not found.tensors:
        raise Unsupported(
            "it has no network and no program", "get the model that holds the weights"
        )
    return found


# --- programs --------------------------------------------------------------------------------


class _Program:
    """The constants of a program, and where in the file of weights they lie."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._tensors: dict[str, Tensor] = {}

    def read(self, program: Message) -> Found:
        for entry in program.messages(2):
            for block in entry.message(2).messages(3):
                self._block(block.message(2), 0)
        return Found(self._tensors)

    def _block(self, block: Message, depth: int) -> None:
        if depth > DEEPEST:
            raise Damaged("its blocks lie in one another without end")
        for operation in block.messages(3):
            self._operation(operation)
            for inner in operation.messages(4):
                self._block(inner, depth + 1)

    def _operation(self, operation: Message) -> None:
        kind = operation.text(1)
        outputs = [output.text(1) for output in operation.messages(3)]
        if not outputs or not (kind == "const" or kind.startswith("constexpr_")):
            return
        values = dict(self._values(operation))
        if kind == "const":
            plain = values.get("val")
        elif kind == "constexpr_affine_dequantize":
            plain = self._dequantised(values, "quantized_data", "scale", "zero_point")
        elif kind == "constexpr_blockwise_shift_scale":
            plain = self._dequantised(values, "data", "scale", "offset")
        elif kind == "constexpr_cast":
            plain = values.get("source_val")
        else:
            raise Unsupported(
                f"{outputs[0][:80]} is compressed by {kind}", "get the model before compression"
            )
        if plain is not None:
            self._tensors[outputs[0]] = plain

    def _dequantised(
        self, values: dict[str, Tensor], data: str, scale: str, zero: str
    ) -> Tensor | None:
        numbers, steps, shift = values.get(data), values.get(scale), values.get(zero)
        if numbers is None or steps is None:
            return None
        self._source.budget.charge(4 * numbers.numel(), data)
        axis = values.get("axis")
        along = None if axis is None or axis.numel() != 1 else int(axis)
        plain = affine(numbers, steps, shift, along)
        if plain is None:
            raise Damaged(f"scales of shape {tuple(steps.shape)} do not fit {tuple(numbers.shape)}")
        return plain

    def _values(self, operation: Message) -> Iterator[tuple[str, Tensor]]:
        for entry in operation.messages(5):
            tensor = self._value(entry.message(2), entry.text(1))
            if tensor is not None:
                yield entry.text(1), tensor
        for entry in operation.messages(2):
            for argument in entry.message(2).messages(1):
                # Either the name of an earlier constant or a value.
                earlier = self._tensors.get(argument.text(1))
                tensor = earlier if earlier is not None else self._value(argument.message(2), "")
                if tensor is not None:
                    yield entry.text(1), tensor

    def _value(self, value: Message, name: str) -> Tensor | None:
        described = value.message(2).message(1)
        kind = described.number(1)
        shape = tuple(side.message(1).number(1) for side in described.messages(3))
        size = checked_size(shape, name)
        if 5 in value:
            place = value.message(5)
            return self._stored(place.text(1), place.number(2), kind, shape, name)
        immediate = value.message(3).message(1)
        dtype = _TYPES.get(kind)
        if dtype is None:
            return None
        for number, stored in ((1, torch.float32), (6, torch.float64)):
            numbers = immediate.message(number).packed(1, stored)
            if numbers is not None:
                return numbers.reshape(shape) if numbers.numel() == size else None
        for number in (2, 5):
            listed = immediate.message(number).numbers(1)
            if listed:
                return torch.tensor(listed).reshape(shape) if len(listed) == size else None
        raw = immediate.message(7).runs(1)
        return raw[-1].tensor(0, dtype, shape, name) if raw else None

    def _stored(
        self, file: str, place: int, kind: int, shape: tuple[int, ...], name: str
    ) -> Tensor | None:
        window = self._source.beside(file.removeprefix(_ROOT)).window
        mark, _, length, start = window.unpack("<IIQQ", place, "a weight")
        if mark != _BLOB:
            raise Damaged(f"there is no weight at byte {place} of {file[:80]}")
        data = window.part(start, length, "a weight")
        if kind in (_INT4, _UINT4):
            size = math.prod(shape)
            packed = data.tensor(0, torch.uint8, ((size + 1) // 2,), name)
            plain: Tensor = nibbles(packed, size, kind == _INT4, name)
            return plain.reshape(shape)
        dtype = _TYPES.get(kind)
        return None if dtype is None else data.tensor(0, dtype, shape, name)


# --- networks --------------------------------------------------------------------------------


def _read_layer(layer: Message, found: Found) -> None:
    """The weights of a layer of a network, in the shape that its settings say."""
    name = layer.text(1)
    if 100 in layer:
        about = layer.message(100)
        outputs, inputs = about.number(1), about.number(2)
        kernel = tuple(about.numbers(20)) or (3, 3)
        turned = about.number(60)
        shape = (inputs, outputs, *kernel) if turned else (outputs, inputs, *kernel)
        if turned:
            shape = (inputs, outputs // max(1, about.number(10, 1)), *kernel)
        _take(about, 90, shape, f"{name}.weight", found)
        _take(about, 91, (outputs,), f"{name}.bias", found)
    elif 140 in layer:
        about = layer.message(140)
        _take(about, 20, (about.number(2), about.number(1)), f"{name}.weight", found)
        _take(about, 21, (about.number(2),), f"{name}.bias", found)
    elif 150 in layer:
        about = layer.message(150)
        _take(about, 20, (about.number(2), about.number(1)), f"{name}.weight", found)
    elif 1045 in layer:
        about = layer.message(1045)
        _take(about, 8, (about.number(5), about.number(6)), f"{name}.weight", found)
        _take(about, 9, (about.number(6),), f"{name}.bias", found)
    for number in (290, 1070):
        if number in layer:
            about = layer.message(number)
            _take(about, 2, tuple(about.numbers(1)), name, found)


def _take(about: Message, number: int, shape: tuple[int, ...], name: str, found: Found) -> None:
    if number not in about:
        return
    weights = about.message(number)
    size = checked_size(shape, name)
    plain = weights.packed(1, torch.float32)
    if plain is None:
        plain = weights.packed(2, torch.float16)
    if plain is None and (raw := weights.runs(30)):
        plain = _unpacked(weights.message(40), raw[-1], size, shape, name)
    if plain is None:
        return
    if plain.numel() != size:
        raise Damaged(f"{name} of shape {shape} has {plain.numel()} values")
    found.tensors[name] = plain.reshape(shape)


def _unpacked(
    about: Message, raw: Window, size: int, shape: tuple[int, ...], name: str
) -> Tensor | None:
    """Weights of up to eight bits, with scales or a table of values."""
    bits = about.number(1)
    raw.budget.charge(4 * size, name)
    if bits == 8:
        codes = raw.tensor(0, torch.uint8, (size,), name)
    elif bits == 4:
        packed = raw.tensor(0, torch.uint8, ((size + 1) // 2,), name)
        codes = nibbles(packed, size, False, name, low_first=False).to(torch.uint8)
    else:
        raise Unsupported(f"{name} has numbers of {bits} bits", "get the model before compression")
    if 102 in about:
        table = about.message(102).packed(1, torch.float32)
        if table is None or table.numel() < 2**bits:
            raise Damaged(f"{name} has too short a table of values")
        return table[codes.long()]
    linear = about.message(101)
    scale, shift = linear.packed(1, torch.float32), linear.packed(2, torch.float32)
    if scale is None:
        return None
    # value = scale * code + shift, one for all or one for each output.
    plain = affine(codes.reshape(shape), scale, None, 0)
    moved = None if shift is None else affine(torch.ones(shape), shift, None, 0)
    if plain is None:
        raise Damaged(f"the scales of {name} do not fit its shape {shape}")
    return (plain if moved is None else plain + moved).reshape(-1)
