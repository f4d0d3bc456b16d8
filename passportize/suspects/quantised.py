"""Quantised weights as numbers: what torchao and bitsandbytes keep, and integers with scales."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from passportize.suspects.pickle_machine import Made, Name
from passportize.suspects.refusals import Damaged
from passportize.suspects.torch_pickle import Array
from passportize.suspects.window import checked_size

__all__ = ["affine", "dequantised", "without_bitsandbytes"]

_PACKED = re.compile(r"^(.*)\._packed_params\._packed_params(?:\.0)?\.([01])$")
_STATE = ".quant_state.bitsandbytes__"
_PARTS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")


def affine(
    values: Tensor, scale: Tensor, zero: Tensor | None = None, axis: int | None = None
) -> Tensor | None:
    """``(values - zero) * scale`` in float32.

    Args:
        values: Integers of any shape.
        scale: One number; one for each place along ``axis``; or, with as many dimensions as
            ``values``, one for each block of equal size.
        zero: Likewise, 0 if None.
        axis: Dimension along which scales lie; where there are as many as rows, the first one.

    Returns:
        None if the shapes do not fit.
    """
    number = values.to(torch.float32)
    spread = _spread(scale.to(torch.float32), values, axis)
    shift = None if zero is None else _spread(zero.to(torch.float32), values, axis)
    if spread is None or (zero is not None and shift is None):
        return None
    return (number if shift is None else number - shift) * spread


def _spread(scale: Tensor, values: Tensor, axis: int | None) -> Tensor | None:
    if scale.numel() == 1:
        return scale.reshape(())
    if scale.dim() == values.dim() and axis is None:
        for place, (wide, narrow) in enumerate(zip(values.shape, scale.shape, strict=True)):
            if not narrow or wide % narrow:
                return None
            if 1 < narrow < wide:
                scale = scale.repeat_interleave(wide // narrow, dim=place)
        return scale
    place = 0 if axis is None else axis
    if -values.dim() <= place < values.dim() and scale.numel() == values.shape[place]:
        shape = [1] * values.dim()
        shape[place] = -1
        return scale.reshape(shape)
    return None


def dequantised(made: Made) -> Tensor | None:
    """The numbers of a tensor of torchao in a pickle; None if it is none, or is packed otherwise.

    Args:
        made: What the pickle describes: ``qdata``, ``scale`` and perhaps ``zero_point``.
    """
    if not isinstance(made.of, Name) or not made.of.module.startswith("torchao."):
        return None
    state = made.state if isinstance(made.state, Mapping) else {}
    inner = state.get("original_weight_tensor", state.get("tensor_impl"))
    if isinstance(inner, Made):
        deeper = dequantised(inner)
        if deeper is not None:
            return deeper
        state = inner.state if isinstance(inner.state, Mapping) else {}
    values = _tensor(state.get("qdata", state.get("int_data")))
    scale = _tensor(state.get("scale"))
    if values is None or scale is None or not values.dim():
        return None
    shape = next((arg for arg in made.args if isinstance(arg, tuple) and _is_shape(arg)), None)
    if shape is not None and tuple(values.shape) != shape:
        return None
    return affine(values, scale, _tensor(state.get("zero_point")))


def _is_shape(value: tuple[Any, ...]) -> bool:
    return bool(value) and all(isinstance(side, int) for side in value)


def _tensor(value: Any) -> Tensor | None:
    value = value.tensor if isinstance(value, Array) else value
    return value if isinstance(value, Tensor) else None


def without_bitsandbytes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights that bitsandbytes packed to four or eight bits, and torch.ao's packed linear layers.

    Raises:
        Damaged: What belongs to a packed weight is missing or does not fit.
    """
    plain = dict(tensors)
    for name in tensors:
        if _STATE in name:
            weight = name.partition(_STATE)[0]
            plain[weight] = _four_bits(weight, tensors, name)
            for extra in (name, *(weight + part for part in _PARTS)):
                plain.pop(extra, None)
        elif name.rpartition(".")[2] == "SCB":
            weight = name[: -len("SCB")] + "weight"
            values = tensors.get(weight)
            if values is not None and values.dtype is torch.int8:
                whole = affine(values, tensors[name].float() / 127.0, axis=0)
                if whole is None:
                    raise Damaged(f"{name} does not fit {weight}")
                plain[weight] = whole
                del plain[name]
        elif (packed := _PACKED.match(name)) is not None:
            plain[f"{packed[1]}.{'weight' if packed[2] == '0' else 'bias'}"] = plain.pop(name)
    return plain


def _four_bits(weight: str, tensors: Mapping[str, Tensor], state: str) -> Tensor:
    """A weight of ``Linear4bit``: a code book, codes, and the largest entry of each block."""
    try:
        about = json.loads(bytes(tensors[state].to(torch.uint8).reshape(-1).tolist()))
        codes, book = tensors[weight].reshape(-1), tensors[weight + ".quant_map"].float()
        largest = tensors[weight + ".absmax"].reshape(-1)
        shape, block = tuple(about["shape"]), int(about["blocksize"])
        size = checked_size(shape, weight)
        if largest.dtype is torch.uint8:
            nested = tensors[weight + ".nested_quant_map"].float()
            group = int(about["nested_blocksize"])
            sizes = tensors[weight + ".nested_absmax"].float()
            places = torch.arange(largest.numel()) // group
            largest = nested[largest.long()] * sizes[places] + float(about["nested_offset"])
    except (KeyError, ValueError, TypeError, IndexError, RuntimeError) as error:
        raise Damaged(f"{weight}, packed by bitsandbytes: {error}") from None
    if (
        codes.dtype is not torch.uint8
        or book.numel() != 16
        or size > 2 * codes.numel()
        or block < 1
    ):
        raise Damaged(f"{weight} has {codes.numel()} bytes for {size} numbers of four bits")
    numbers = book[torch.stack([codes >> 4, codes & 15], dim=-1).reshape(-1)[:size].long()]
    places = torch.arange(size) // block
    if size and int(places[-1]) >= largest.numel():
        raise Damaged(f"{weight} has too few blocks")
    return (numbers * largest.float()[places]).reshape(shape)
