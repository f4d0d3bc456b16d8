"""What is known of other people's classes by their names alone, so that none has to be loaded.

timm, torchvision, transformers, PyTorch Geometric and torch's own wrappers; a name that they change
is to be changed here and nowhere else.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

__all__ = [
    "PYG_BATCH_NORM",
    "STANDARDISED_CONVOLUTIONS",
    "WRAPPERS",
    "architecture_of",
    "hooks_come_late",
    "input_shape_of",
    "is_packed_by_pyg",
    "merged_later",
    "timm_exclusions",
    "unsplit_loss_of",
]

STANDARDISED_CONVOLUTIONS = {
    "timm.layers.std_conv.StdConv2d",
    "timm.layers.std_conv.StdConv2dSame",
    "timm.layers.std_conv.ScaledStdConv2d",
    "timm.layers.std_conv.ScaledStdConv2dSame",
    "transformers.models.bit.modeling_bit.WeightStandardizedConv2d",
}
"""Convolutions whose forward takes the mean from every kernel of their weight; the very classes,
because nobody knows what a subclass does."""

PYG_BATCH_NORM = ("torch_geometric.nn.norm.batch_norm", "BatchNorm")
"""Module and class of PyG's batch norm, which sends a single row around the norm it holds."""

WRAPPERS = {
    "DistributedDataParallel": "wrap it in DDP afterwards",
    "DataParallel": "wrap it in DataParallel afterwards (DDP is better)",
    "FullyShardedDataParallel": "shard it afterwards",
    "FSDPModule": "call fully_shard afterwards",
    "OptimizedModule": "call torch.compile afterwards",
    "ScriptModule": "TorchScript cannot be changed; start from the Python model",
    "RecursiveScriptModule": "TorchScript cannot be changed; start from the Python model",
}
"""Classes of torch that surgery must not reach through, and what to do instead."""

# PyG's batch norm sees rows only, like that of torch, and serves dense models too.
_PACKED_NORMS = "torch_geometric.nn.norm."
_PACKED_BASES = {"MessagePassing", "Aggregation"}


def is_packed_by_pyg(module: nn.Module) -> bool:
    """Whether a module of PyTorch Geometric works on the nodes of packed graphs."""
    for base in type(module).__mro__:
        if base.__name__ in _PACKED_BASES and base.__module__.startswith("torch_geometric.nn."):
            return True
        if base.__module__.startswith(_PACKED_NORMS) and base.__module__ != PYG_BATCH_NORM[0]:
            return True
    return False


_LOW_RANK = re.compile(r"lora_(a|b|up|down|layer|embedding_a|embedding_b)$", re.IGNORECASE)


def merged_later(model: nn.Module) -> set[str]:
    """Names of modules and parameters that are added to those of a layer that was there before.

    They start at zero, are merged into that layer or thrown away, and are in no released file. Told
    by peft's base class, and by the names that all implementations of LoRA share.
    """
    names = (name for name, _ in (*model.named_modules(), *model.named_parameters()))
    found = {name for name in names if any(map(_LOW_RANK.match, name.split(".")))}
    for name, module in model.named_modules():
        if not any(base.__name__ == "BaseTunerLayer" for base in type(module).__mro__):
            continue
        for child, inside in module.named_children():
            if child != "base_layer":
                path = f"{name}.{child}" if name else child
                found |= {
                    f"{path}.{deeper}" if deeper else path for deeper, _ in inside.named_modules()
                }
    return found


def input_shape_of(model: nn.Module) -> list[int] | None:
    """Shape of one input as timm or transformers keep it in a model's settings, None without."""
    for attribute in ("pretrained_cfg", "default_cfg"):
        size = _entry(getattr(model, attribute, None), "input_size")
        if isinstance(size, (tuple, list)) and all(isinstance(item, int) for item in size):
            return list(size)
    config = getattr(model, "config", None)
    side, channels = _entry(config, "image_size"), _entry(config, "num_channels")
    sides = list(side) if isinstance(side, (tuple, list)) else [side, side]
    shape = [3 if channels is None else channels, *sides]
    return shape if all(isinstance(item, int) for item in shape) else None


def _entry(config: Any, key: str) -> Any:
    return config.get(key) if isinstance(config, Mapping) else getattr(config, key, None)


def architecture_of(model: nn.Module) -> str:
    """The name by which timm makes a model, empty if there is none."""
    for attribute in ("pretrained_cfg", "default_cfg"):
        settings = getattr(model, attribute, None)
        if isinstance(settings, Mapping):
            name = settings.get("architecture")
        else:
            name = getattr(settings, "architecture", None)
        if isinstance(name, str) and name:
            return name
    return ""


def timm_exclusions() -> tuple[set[type], tuple[Callable[..., Any], ...]]:
    """Modules and functions that timm says can't be traced, where timm is loaded already."""
    layers = sys.modules.get("timm.layers")
    modules = getattr(layers, "get_notrace_modules", None)
    functions = getattr(layers, "get_notrace_functions", None)
    if modules is None or functions is None:
        return set(), ()
    return set(modules()), tuple(functions())


def hooks_come_late(module: nn.Module) -> bool:
    """Whether a model of transformers registers hooks in the forward pass that needs them first."""
    return bool(getattr(module, "_can_record_outputs", None))


def unsplit_loss_of(criterion: object) -> Callable[[Any, Any], Any] | None:
    """The loss without splits inside timm's JsdCrossEntropy, None for any other criterion."""
    part = getattr(criterion, "cross_entropy_loss", None)
    return part if callable(part) and hasattr(criterion, "num_splits") else None
