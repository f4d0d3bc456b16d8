"""TensorFlow Lite models: the tensors that have values, dequantised.

By the schema of the format, tensorflow/lite/schema/schema.fbs. Kernels stay in its own layouts,
outputs by height by width by inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from passportize.suspects.dtypes import nibbles
from passportize.suspects.flatbuffer import Table
from passportize.suspects.quantised import affine
from passportize.suspects.refusals import Damaged
from passportize.suspects.source import Found, Source
from passportize.suspects.window import Window, checked_size

__all__ = ["is_tflite", "read_tflite"]

_TYPES = {
    0: torch.float32,
    1: torch.float16,
    2: torch.int32,
    3: torch.uint8,
    4: torch.int64,
    6: torch.bool,
    7: torch.int16,
    9: torch.int8,
    10: torch.float64,
    12: torch.uint64,
    15: torch.uint32,
    16: torch.uint16,
    18: torch.bfloat16,
}
_INT4 = 17


def is_tflite(source: Source) -> bool:
    """Whether a file has the mark of a TensorFlow Lite model."""
    return source.head(8)[4:] == b"TFL3"


def read_tflite(source: Source) -> Found:
    """Constant tensors by name."""
    window = source.window
    model = Table.root(window)
    buffers = [_content(buffer, window) for buffer in model.tables(4)]
    found = Found({})
    sparse = 0
    for graph in model.tables(2):
        for entry in graph.tables(0):
            place = entry.number(2, "I")
            data = buffers[place] if place < len(buffers) else None
            if data is None or not len(data):
                continue
            name = entry.text(3) or f"tensor{len(found.tensors)}"
            if entry.table(6) is not None:
                sparse += 1
                continue
            tensor = _tensor(entry, data, name)
            if tensor is not None:
                found.tensors[name if name not in found.tensors else f"{name}#{place}"] = tensor
    if sparse:
        found.notes.append(f"{sparse} sparse tensors were not looked at")
    return found


def _content(buffer: Table, window: Window) -> Window:
    offset, size = buffer.number(1, "Q"), buffer.number(2, "Q")
    # Of models beyond 2 GB the buffers lie behind the tables.
    return window.part(offset, size, "a buffer") if offset > 1 else buffer.vector(0, 1)


def _tensor(entry: Table, data: Window, name: str) -> Tensor | None:
    kind, shape = entry.number(1, "b"), tuple(entry.numbers(0, "i", 4))
    size = checked_size(shape, name)
    if kind == _INT4:
        packed = data.tensor(0, torch.uint8, ((size + 1) // 2,), name)
        values: Tensor = nibbles(packed, size, True, name).reshape(shape)
    elif (dtype := _TYPES.get(kind)) is not None:
        values = data.tensor(0, dtype, shape, name)
    else:
        return None
    about = entry.table(4)
    scales = about.vector(2, 4) if about is not None else None
    if about is None or scales is None or not len(scales) or values.is_floating_point():
        return values
    data.budget.charge(4 * size, name)
    scale = scales.tensor(0, torch.float32, (len(scales) // 4,), name)
    zeros = about.vector(3, 8)
    zero = zeros.tensor(0, torch.int64, (len(zeros) // 8,), name) if len(zeros) else None
    plain = affine(values, scale, zero, about.number(6, "i"))
    if plain is None:
        raise Damaged(f"{name} has {scale.numel()} scales, which do not fit its shape {shape}")
    return plain
