"""Weights that a module computes from other tensors: pruned, weight-normed, parametrized ones.

What a layer multiplies with is what carries bits, so it is computed here as the layer does, but
without what comes with it: no power iteration of a spectral norm, no attribute set by a hook.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _Orthogonal, _SpectralNorm, _WeightNorm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

__all__ = [
    "can_compute",
    "computed_from",
    "computed_tensors",
    "effective_weight",
    "is_computed",
    "is_in_files",
    "set_effective_weight",
    "sources_of",
]

_PRUNING = ("torch.nn.utils.prune", "BasePruningMethod")


def is_computed(module: nn.Module, name: str) -> bool:
    """Whether a tensor of a module is computed by a parametrization or a hook of torch."""
    return parametrize.is_parametrized(module, name) or _hook(module, name) is not None


def can_compute(module: nn.Module, name: str) -> bool:
    """Whether a computed tensor can be had without changing a buffer."""
    if not parametrize.is_parametrized(module, name):
        return _hook(module, name) is not None
    return all(
        isinstance(step, (_SpectralNorm, _Orthogonal)) or next(step.buffers(), None) is None
        for step in _steps(module, name)
    )


def is_in_files(module: nn.Module, name: str) -> bool:
    """Whether a computed tensor can be had from a state dict too, where the computation is none.

    So it is for the hooks and parametrizations of torch that keep a weight and what changes it.
    """
    if not parametrize.is_parametrized(module, name):
        return _hook(module, name) is not None
    steps = _steps(module, name)
    return len(steps) == 1 and isinstance(steps[0], (_SpectralNorm, _WeightNorm))


def effective_weight(module: nn.Module, name: str) -> Tensor:
    """The tensor that a layer uses under a name; spectral norms, a factor for all, are left out.

    Args:
        module: The layer.
        name: ``"weight"`` say.

    Returns:
        The parameter itself, or what is computed of others now, differentiable.

    Raises:
        AttributeError: There is no such tensor.
    """
    own = module._parameters.get(name)
    if own is not None:
        return own
    if parametrize.is_parametrized(module, name):
        originals = _originals(module, name)
        value: Any = originals[0] if len(originals) == 1 else originals
        for step in _steps(module, name):
            if not isinstance(step, _SpectralNorm):
                value = step(*value) if isinstance(value, tuple) else step(value)
        computed: Tensor = value
        return computed
    hook = _hook(module, name)
    tensor: Tensor
    if hook is None:
        tensor = getattr(module, name)
    elif isinstance(hook, WeightNorm):
        tensor = hook.compute_weight(module)
    elif isinstance(hook, SpectralNorm):
        tensor = getattr(module, f"{name}_orig")
    else:
        original: Tensor = getattr(module, f"{name}_orig")
        tensor = original * getattr(module, f"{name}_mask").to(original.dtype)
    return tensor


@torch.no_grad()
def set_effective_weight(module: nn.Module, name: str, value: Tensor) -> None:
    """Change what a weight is computed from, so that it becomes a value as nearly as it can.

    Args:
        module: The layer.
        name: ``"weight"`` say.
        value: In the shape of the weight.

    Raises:
        ValueError: A parametrization does not say how; with the reason.
    """
    own = module._parameters.get(name)
    hook = _hook(module, name)
    if own is not None:
        own.copy_(value)
    elif parametrize.is_parametrized(module, name):
        try:
            setattr(module, name, value)
        except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
            raise ValueError(f"its parametrization cannot be set: {error}") from None
    elif isinstance(hook, WeightNorm):
        getattr(module, f"{name}_v").copy_(value)
        getattr(module, f"{name}_g").copy_(torch.norm_except_dim(value, 2, hook.dim))
    elif isinstance(hook, SpectralNorm):
        getattr(module, f"{name}_orig").copy_(value)
    elif hook is not None:
        original = getattr(module, f"{name}_orig")
        original.copy_(torch.where(getattr(module, f"{name}_mask") != 0, value, original))
    else:
        getattr(module, name).copy_(value)


def sources_of(module: nn.Module, name: str) -> list[Tensor]:
    """The tensors of a module that a tensor of it is made of; itself where it is a parameter."""
    own = module._parameters.get(name)
    if own is not None:
        return [own]
    if parametrize.is_parametrized(module, name):
        return list(module.parametrizations[name].parameters())  # type: ignore[index, union-attr]
    if _hook(module, name) is not None:
        return [p for key, p in module._parameters.items() if p is not None and _of(key, name)]
    return [getattr(module, name)]


def computed_tensors(module: nn.Module) -> dict[str, Tensor]:
    """All tensors that a module computes so, by name, as it uses them."""
    return {name: effective_weight(module, name) for name in _computed_names(module)}


def computed_from(modules: Mapping[str, nn.Module], parameter: str) -> str:
    """The weight that is computed from a parameter, by their dotted names; empty if there is none.

    Args:
        modules: The modules of a model by name.
        parameter: ``"fc.weight_orig"`` or ``"fc.parametrizations.weight.original1"`` say.
    """
    path, _, key = parameter.rpartition(".")
    chain = re.fullmatch(r"(?:(.*)\.)?parametrizations\.([^.]+)", path)
    place, name = (chain[1] or "", chain[2]) if chain else (path, key.rpartition("_")[0])
    owner = modules.get(place)
    if owner is None or not name or not is_computed(owner, name):
        return ""
    return f"{place}.{name}" if place else name


def _computed_names(module: nn.Module) -> Iterator[str]:
    if parametrize.is_parametrized(module):
        yield from module.parametrizations  # type: ignore[misc]
    for hook in module._forward_pre_hooks.values():
        name = _tensor_of(hook)
        if name:
            yield name


def _of(key: str, name: str) -> bool:
    return key in (f"{name}_g", f"{name}_v", f"{name}_orig")


def _hook(module: nn.Module, name: str) -> Any:
    for hook in module._forward_pre_hooks.values():
        if _tensor_of(hook) == name:
            return hook
    return None


def _tensor_of(hook: Any) -> str:
    """Name of the tensor that a hook of torch computes, empty for other hooks."""
    if isinstance(hook, (WeightNorm, SpectralNorm)):
        return hook.name
    for base in type(hook).__mro__:
        if (base.__module__, base.__name__) == _PRUNING:
            return str(hook._tensor_name)
    return ""


def _steps(module: nn.Module, name: str) -> list[nn.Module]:
    chain: Any = module.parametrizations[name]  # type: ignore[index]
    return [chain[index] for index in range(len(chain))]


def _originals(module: nn.Module, name: str) -> tuple[Tensor, ...]:
    chain: Any = module.parametrizations[name]  # type: ignore[index]
    if chain.is_tensor:
        return (chain.original,)
    return tuple(getattr(chain, f"original{index}") for index in range(chain.ntensors))
