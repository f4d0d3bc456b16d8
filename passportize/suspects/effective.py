"""What a layer computes with, where a state dict holds the parts that it is made of.

Pruning keeps a weight and a mask, weight norm a length and a direction, spectral norm two vectors,
LoRA two thin factors beside a frozen base. The signature lies in what they make together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from passportize.suspects.merging import merge_adapters
from passportize.suspects.quantised import without_bitsandbytes

__all__ = ["effective"]

_PARAMETRISED = re.compile(r"^(.*?)parametrizations\.([^.]+)\.original(\d*)$")


def effective(
    tensors: Mapping[str, Tensor], scales: Mapping[str, float] | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """Weights by the names of the plain layers.

    Args:
        tensors: Tensors by name, as they are kept.
        scales: Scale of LoRA adapters by the name of their layer, ``""`` for all.

    Returns:
        Tensors by name; those that were put together stand where their first part stood. And
        notes for the reader of a verdict.

    Raises:
        Damaged: Parts that belong together do not fit.
    """
    plain = _parametrised(without_bitsandbytes(dict(tensors)))
    made: dict[str, tuple[str, Tensor]] = {}
    parts: set[str] = set()
    for first in plain:
        composed = _composed(plain, first)
        if composed is not None:
            name, value, others = composed
            made[first] = name, value
            parts.update(others)
    whole = {}
    for name, tensor in plain.items():
        if name in made:
            whole[made[name][0]] = made[name][1]
        elif name not in parts:
            whole[name] = tensor
    return merge_adapters(whole, scales or {})


def _composed(tensors: Mapping[str, Tensor], first: str) -> tuple[str, Tensor, list[str]] | None:
    """The weight whose first part has this name, its value, and its other parts.

    ``torch.nn.utils.prune``, and the old ``spectral_norm`` and ``weight_norm``.
    """
    if first.endswith("_orig"):
        name, original = first.removesuffix("_orig"), tensors[first]
        mask = tensors.get(name + "_mask")
        if mask is not None and mask.shape == original.shape:
            pruned: Tensor = original * mask.to(original.dtype)
            return name, pruned, [name + "_mask"]
        left, right = tensors.get(name + "_u"), tensors.get(name + "_v")
        if left is not None:
            return name, _over_largest(original, left, right), [name + "_u", name + "_v"]
    elif first.endswith("_g"):
        name, length = first.removesuffix("_g"), tensors[first]
        direction = tensors.get(name + "_v")
        if direction is not None and _is_length_of(length, direction):
            return name, _with_length(length, direction), [name + "_v"]
    return None


def _is_length_of(length: Tensor, direction: Tensor) -> bool:
    if not length.is_floating_point() or not direction.is_floating_point() or not direction.dim():
        return False
    if length.numel() == 1:
        return True
    return length.dim() == direction.dim() and all(
        short in (1, long) for short, long in zip(length.shape, direction.shape, strict=True)
    )


def _with_length(length: Tensor, direction: Tensor) -> Tensor:
    """``g * v / |v|``, the norm over the dimensions that ``g`` has not."""
    wide, value = length.float(), direction.float()
    over = [place for place in range(value.dim()) if wide.dim() < 2 or wide.shape[place] == 1]
    size = torch.linalg.vector_norm(value, dim=over, keepdim=True)
    whole: Tensor = wide * value / size.masked_fill(size == 0, 1.0)
    return whole


def _over_largest(weight: Tensor, left: Tensor, right: Tensor | None) -> Tensor:
    """A weight over its largest singular value, as the stored vectors estimate it."""
    flat = weight.float().flatten(1) if weight.dim() > 1 else weight.float().reshape(-1, 1)
    if right is None or left.numel() != flat.shape[0] or right.numel() != flat.shape[1]:
        return weight
    sigma = float(left.float().reshape(-1) @ flat @ right.float().reshape(-1))
    return weight.float() / sigma if sigma else weight


def _parametrised(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """``torch.nn.utils.parametrizations`` of weight norm and spectral norm.

    Of any other parametrization the original is what there is.
    """
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        found = _PARAMETRISED.match(name)
        if found is None:
            if "parametrizations." not in name:
                plain[name] = tensor
            continue
        owner, attribute, number = found.groups()
        inside = f"{owner}parametrizations.{attribute}."
        weight = owner + attribute
        if number in ("", "0"):
            left = tensors.get(inside + "0._u")
            direction = tensors.get(inside + "original1")
            if left is not None and not number:
                plain[weight] = _over_largest(tensor, left, tensors.get(inside + "0._v"))
            elif direction is not None and _is_length_of(tensor, direction):
                plain[weight] = _with_length(tensor, direction)
            else:
                plain[weight] = tensor
    return plain
