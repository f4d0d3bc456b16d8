"""ONNX models: their initialisers and constants, also in other files and as integers with scales.

Read by the format's own definition, onnx.proto; no operation is run, and no package is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from passportize.suspects.dtypes import nibbles
from passportize.suspects.protobuf import RUN, VARINT, Message, looks_like
from passportize.suspects.quantised import affine
from passportize.suspects.refusals import Damaged
from passportize.suspects.source import Found, Source
from passportize.suspects.window import Window, checked_size

__all__ = ["is_onnx", "read_onnx"]

_MODEL = {
    **dict.fromkeys((1, 5), VARINT),
    **dict.fromkeys((2, 3, 4, 6, 7, 8, 14, 20, 25, 26), RUN),
}
_GRAPH = 7
DEEPEST = 8

_TYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    4: torch.uint16,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    12: torch.uint32,
    13: torch.uint64,
    16: torch.bfloat16,
    17: torch.float8_e4m3fn,
    18: torch.float8_e4m3fnuz,
    19: torch.float8_e5m2,
    20: torch.float8_e5m2fnuz,
}
_UINT4, _INT4 = 21, 22
# Where values lie that are not raw, and as what: small types as numbers of 32 bits.
_REPEATED = {1: (4, torch.float32), 11: (10, torch.float64)}
_AS_INT32 = {2, 3, 4, 5, 6, 9, 10, 16, 17, 18, 19, 20, 21, 22}

# Operations with an integer weight: the inputs that are weight, scale and zero point, and whether
# scales lie along the rows of the weight or along its last dimension.
_INTEGER_WEIGHTS: dict[str, tuple[int, int | None, int | None, int]] = {
    "QLinearConv": (3, 4, 5, 0),
    "QLinearMatMul": (3, 4, 5, -1),
    "QGemm": (3, 4, 5, -1),
    "ConvInteger": (1, None, 3, 0),
    "MatMulInteger": (1, None, 3, -1),
    "DynamicQuantizeMatMul": (1, 2, 3, -1),
    "MatMulIntegerToFloat": (1, 3, 5, -1),
}


@dataclass
class _Graph:
    """What is collected from a graph and those within it."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    integer: dict[str, tuple[str, str, int | None]] = field(default_factory=dict)


def is_onnx(source: Source) -> bool:
    """Whether a file is a message with a graph and the fields of an ONNX model."""
    return not source.is_folder and looks_like(source.window, _MODEL, {_GRAPH})


def read_onnx(source: Source) -> Found:
    """Initialisers and constants by name; those that are dequantised in the graph as numbers."""
    model = Message(source.window)
    graph = _Graph()
    for run in model.runs(_GRAPH):
        _read_graph(run, source, graph, 0)
    for name, (scale, zero, axis) in graph.integer.items():
        values, steps = graph.tensors.get(name), graph.tensors.get(scale)
        if values is None or (scale and steps is None):
            continue
        source.budget.charge(4 * values.numel(), name)
        ones = torch.ones(()) if steps is None else steps
        plain = affine(values, ones, graph.tensors.get(zero), axis)
        if plain is None:
            raise Damaged(f"scale and zero point of {name} do not fit it")
        graph.tensors[name] = plain
    return Found(graph.tensors)


def _read_graph(window: Window, source: Source, graph: _Graph, depth: int) -> None:
    if depth > DEEPEST:
        raise Damaged("its graphs lie in one another without end")
    message = Message(window)
    for initialiser in message.messages(5):
        _take(initialiser, initialiser.text(8), source, graph)
    for node in message.messages(1):
        kind, inputs, outputs = node.text(4), node.texts(1), node.texts(2)
        for attribute in node.messages(5):
            if kind == "Constant" and 5 in attribute:
                _take(attribute.message(5), outputs[0] if outputs else "", source, graph)
            for inner in (*attribute.runs(6), *attribute.runs(11)):
                _read_graph(inner, source, graph, depth + 1)
        if kind == "DequantizeLinear" and len(inputs) > 1:
            zero = inputs[2] if len(inputs) > 2 else ""
            graph.integer[inputs[0]] = inputs[1], zero, _axis(node)
        elif kind in _INTEGER_WEIGHTS:
            weight, scale, zero_at, axis = _INTEGER_WEIGHTS[kind]
            if any(a.text(1) == "transB" and a.number(3) for a in node.messages(5)):
                axis = 0
            names = [
                "" if place is None or place >= len(inputs) else inputs[place]
                for place in (weight, scale, zero_at)
            ]
            graph.integer[names[0]] = names[1], names[2], axis


def _axis(node: Message) -> int | None:
    """The dimension along which ``DequantizeLinear`` has its scales; None for blocks."""
    axis, blocks = 1, 0
    for attribute in node.messages(5):
        if attribute.text(1) == "axis":
            axis = attribute.number(3, 1)
        elif attribute.text(1) == "block_size":
            blocks = attribute.number(3)
    return None if blocks else axis


def _take(message: Message, name: str, source: Source, graph: _Graph) -> None:
    tensor = _tensor(message, name, source)
    if tensor is not None:
        graph.tensors[name] = tensor


def _tensor(message: Message, name: str, source: Source) -> Tensor | None:
    """A tensor of the file; None if it holds text, or numbers of a kind that no weight has."""
    kind, shape = message.number(2), tuple(message.numbers(1))
    size = checked_size(shape, name)
    if kind in (_UINT4, _INT4):
        raw = _raw(message, name, source)
        length = (size + 1) // 2
        if raw is None:
            return None
        packed = raw.tensor(0, torch.uint8, (length,), name)
        plain: Tensor = nibbles(packed, size, kind == _INT4, name)
        return plain.reshape(shape)
    dtype = _TYPES.get(kind)
    if dtype is None:
        return None
    raw = _raw(message, name, source)
    if raw is not None:
        return raw.tensor(0, dtype, shape, name)
    return _repeated(message, name, kind, dtype, shape)


def _repeated(
    message: Message, name: str, kind: int, dtype: torch.dtype, shape: tuple[int, ...]
) -> Tensor | None:
    size = checked_size(shape, name)
    if kind in _REPEATED:
        number, stored = _REPEATED[kind]
        tensor = message.packed(number, stored)
    else:
        tensor = message.many_numbers(5 if kind in _AS_INT32 else 7 if kind == 7 else 11)
        if dtype.is_floating_point:
            # The bits of short floats, as numbers of 32 bits.
            bits = torch.int16 if dtype.itemsize == 2 else torch.uint8
            tensor = tensor.to(bits).view(dtype)
        else:
            tensor = tensor.to(dtype)
    there = 0 if tensor is None else tensor.numel()
    if there != size:
        raise Damaged(f"{name} of shape {shape} has {there} values")
    return torch.empty(shape, dtype=dtype) if tensor is None else tensor.reshape(shape)


def _raw(message: Message, name: str, source: Source) -> Window | None:
    """The bytes of a tensor, in the model or in a file beside it."""
    if message.number(14) != 1:
        runs = message.runs(9)
        return runs[-1] if runs else None
    about = dict(_pairs(message))
    beside = source.beside(about.get("location", ""))
    try:
        offset = int(about.get("offset", "0"))
        length = int(about.get("length", str(len(beside.window) - offset)))
    except ValueError:
        raise Damaged(f"{name} does not say where in {about.get('location')} it lies") from None
    return beside.window.part(offset, length, name)


def _pairs(message: Message) -> Iterator[tuple[str, str]]:
    return ((entry.text(1), entry.text(2)) for entry in message.messages(13))
