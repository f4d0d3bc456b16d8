"""TensorFlow Lite models, written by hand with the library flatbuffers.

The converter of LiteRT brings jax and other versions of half of the tests' packages, so it is no
part of the tests; ``benchmarks.suspects.kinds --litert`` uses it from an environment of its own.
These files hold what its files hold: kernels in the format's layouts, in float, half and int8 with
a scale for each row, and bias, but no operators.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.suspects.torch_makers import Maker

FLOAT32, FLOAT16, INT8 = 0, 1, 9


def laid_out(weight: Tensor, *, depthwise: bool) -> Tensor:
    """A weight in the layout of TensorFlow Lite: outputs, height, width, inputs."""
    if weight.dim() != 4:
        return weight
    return weight.permute(1, 2, 3, 0) if depthwise else weight.permute(0, 2, 3, 1)


def write_tflite(path: Path, tensors: dict[str, tuple[Tensor, Tensor | None, int]]) -> None:
    """Write a model without operators.

    Args:
        path: The file.
        tensors: By name: values, scales or None, and the dimension along which scales lie.
    """
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    types = {torch.float32: FLOAT32, torch.float16: FLOAT16, torch.int8: INT8}

    def numbers(values: list[int] | list[float], size: int, put: str) -> int:
        builder.StartVector(size, len(values), size)
        for value in reversed(values):
            getattr(builder, put)(value)
        return int(builder.EndVector())

    def offsets(values: list[int]) -> int:
        builder.StartVector(4, len(values), 4)
        for value in reversed(values):
            builder.PrependUOffsetTRelative(value)
        return int(builder.EndVector())

    builder.StartObject(3)
    buffers = [builder.EndObject()]
    entries = []
    for place, (name, (values, scales, axis)) in enumerate(tensors.items(), start=1):
        data = builder.CreateByteVector(values.contiguous().numpy().tobytes())
        builder.StartObject(3)
        builder.PrependUOffsetTRelativeSlot(0, data, 0)
        buffers.append(builder.EndObject())
        label = builder.CreateString(name)
        shape = numbers(list(values.shape), 4, "PrependInt32")
        about = 0
        if scales is not None:
            steps = numbers(scales.tolist(), 4, "PrependFloat32")
            zeros = numbers([0] * len(scales), 8, "PrependInt64")
            builder.StartObject(7)
            builder.PrependUOffsetTRelativeSlot(2, steps, 0)
            builder.PrependUOffsetTRelativeSlot(3, zeros, 0)
            builder.PrependInt32Slot(6, axis, 0)
            about = builder.EndObject()
        builder.StartObject(10)
        builder.PrependUOffsetTRelativeSlot(0, shape, 0)
        builder.PrependInt8Slot(1, types[values.dtype], 0)
        builder.PrependUint32Slot(2, place, 0)
        builder.PrependUOffsetTRelativeSlot(3, label, 0)
        if about:
            builder.PrependUOffsetTRelativeSlot(4, about, 0)
        entries.append(builder.EndObject())
    listed = offsets(entries)
    builder.StartObject(5)
    builder.PrependUOffsetTRelativeSlot(0, listed, 0)
    graph = builder.EndObject()
    graphs, stored = offsets([graph]), offsets(buffers)
    builder.StartObject(8)
    builder.PrependUint32Slot(0, 3, 0)
    builder.PrependUOffsetTRelativeSlot(2, graphs, 0)
    builder.PrependUOffsetTRelativeSlot(4, stored, 0)
    builder.Finish(builder.EndObject(), file_identifier=b"TFL3")
    path.write_bytes(bytes(builder.Output()))


def _written(precision: str) -> Maker:
    def maker(model: nn.Module, example: Tensor, folder: Path) -> Path:
        tensors: dict[str, tuple[Tensor, Tensor | None, int]] = {}
        for layer in model.modules():
            if not isinstance(layer, (nn.Conv2d, nn.Linear)):
                continue
            groups = getattr(layer, "groups", 1)
            depthwise = groups > 1 and groups == getattr(layer, "in_channels", 0)
            weight = laid_out(layer.weight.detach(), depthwise=depthwise)
            name, scales = f"arith.constant{len(tensors)}", None
            axis = weight.dim() - 1 if depthwise else 0
            if precision == "half":
                weight = weight.half()
            elif precision == "int8":
                others = [place for place in range(weight.dim()) if place != axis]
                wide = weight.abs().amax(others, keepdim=True) / 127
                weight, scales = (weight / wide).round().to(torch.int8), wide.reshape(-1)
            tensors[name] = weight, scales, axis
        write_tflite(folder / "model.tflite", tensors)
        return folder / "model.tflite"

    return maker


written_float = _written("plain")
written_half = _written("half")
written_int8 = _written("int8")
