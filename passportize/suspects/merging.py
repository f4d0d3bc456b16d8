"""LoRA adapters merged into the weights that they change, in the layout of PEFT.

The scale of an adapter, ``alpha / r``, is no tensor: it stands in the settings beside the weights,
or in the modules of a whole model.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from passportize.suspects.refusals import Damaged

__all__ = ["adapter_scales", "has_adapters", "merge_adapters"]

_FACTOR = re.compile(
    r"^(.*)\.lora_(A|B|embedding_A|embedding_B|magnitude_vector)(?:\.([^.]+))?(?:\.weight)?$"
)
_BASE = ".base_layer."
_WRAPPED = re.compile(r"^(.*)\.(?:original_module|modules_to_save\.[^.]+)\.([^.]+)$")
_ROOT = "base_model.model."


def has_adapters(tensors: Mapping[str, Tensor]) -> bool:
    """Whether there are factors of LoRA among tensors."""
    return any(_FACTOR.match(name) for name in tensors)


def adapter_scales(config: Any) -> dict[str, float]:
    """The scale that the settings of an adapter name, for all layers (``""``).

    Args:
        config: What ``adapter_config.json`` holds.
    """
    if not isinstance(config, Mapping):
        return {}
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, (int, float)) or not isinstance(alpha, (int, float)) or rank <= 0:
        return {}
    return {"": alpha / (rank**0.5 if config.get("use_rslora") else rank)}


def merge_adapters(
    tensors: Mapping[str, Tensor], scales: Mapping[str, float]
) -> tuple[dict[str, Tensor], list[str]]:
    """Weights with the change that adapters make to them, by the names of the plain layers.

    Args:
        tensors: Base and factors.
        scales: Scale by the name of the layer, ``""`` for all others.

    Returns:
        Tensors by name, and notes for the reader of a verdict.

    Raises:
        Damaged: Factors do not fit the weight that they are for.
    """
    factors: dict[str, dict[str, dict[str, Tensor]]] = defaultdict(lambda: defaultdict(dict))
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        found = _FACTOR.match(name)
        if found is not None:
            factors[found[1]][found[3] or ""][found[2]] = tensor
    if not factors and not any(_BASE in name for name in tensors):
        return dict(tensors), []
    for name, tensor in tensors.items():
        if _FACTOR.match(name):
            continue
        saved = _WRAPPED.match(name)
        if saved is not None:
            if ".original_module." not in name or f"{saved[1]}.{saved[2]}" not in plain:
                plain[f"{saved[1]}.{saved[2]}"] = tensor
        else:
            plain[name.replace(_BASE, ".")] = tensor
    notes = []
    unknown, homeless = 0, 0
    for layer, adapters in factors.items():
        weight = next(
            (place for place in _places(layer) if place in plain and plain[place].dim() > 1), None
        )
        if weight is None:
            homeless += 1
            continue
        scale = scales.get(layer, scales.get(""))
        unknown += scale is None
        for parts in adapters.values():
            plain[weight] = _merged(plain[weight], parts, 1.0 if scale is None else scale, layer)
    if homeless:
        notes.append(f"{homeless} LoRA adapters have no base in it and were left out")
    if unknown:
        notes.append(
            f"the scale of {unknown} LoRA adapters is not in it; 1 was taken, which is PEFT's own"
        )
    if len(factors) > homeless:
        notes.append(f"{len(factors) - homeless} LoRA adapters were merged into their base")
    return plain, notes


def _places(layer: str) -> list[str]:
    bare = layer.removeprefix(_ROOT)
    return [f"{place}.weight" for place in dict.fromkeys((layer, bare))]


def _merged(weight: Tensor, parts: Mapping[str, Tensor], scale: float, layer: str) -> Tensor:
    base = weight.float()
    first, second = parts.get("A"), parts.get("B")
    if first is None or second is None:
        second, first = parts.get("embedding_A"), parts.get("embedding_B")
        if first is None or second is None:
            raise Damaged(f"{layer} has one factor of an adapter without the other")
        # An embedding has its rows the other way round: B times A, transposed.
        first, second = first.T, second.T
    thin, wide = first.float().flatten(1), second.float().flatten(1)
    if thin.shape[0] != wide.shape[1] or wide.shape[0] * thin.shape[1] != base.numel():
        raise Damaged(
            f"{layer}: factors of shapes {tuple(first.shape)} and {tuple(second.shape)} are none "
            f"of a weight of shape {tuple(weight.shape)}"
        )
    change = wide @ thin
    if tuple(change.shape) != tuple(base.flatten(1).shape):
        # A layer that keeps its weight as inputs by outputs.
        change = change.T
    merged = base + scale * change.reshape(base.shape)
    magnitude = parts.get("magnitude_vector")
    if magnitude is None:
        return merged
    if magnitude.numel() != base.shape[0]:
        # Of an embedding DoRA has one for each column.
        columns: Tensor = torch.linalg.vector_norm(merged, dim=0)
        return merged * (magnitude.float() / columns)
    size = torch.linalg.vector_norm(merged.flatten(1), dim=1)
    factor: Tensor = magnitude.float().reshape(-1) / size
    return merged * factor.reshape(-1, *[1] * (base.dim() - 1))
