"""Finding the normalization layers of a model, and what stands behind each."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.lazy import LazyModuleMixin

from passportize.errors import UninitializedModule
from passportize.layers.derived import plain_class
from passportize.layers.layer import PassportLayer
from passportize.layers.own_methods import foreign_forward
from passportize.layers.private_branch import STATISTICS
from passportize.layers.registry import NOT_ADAPTED, adapter_for
from passportize.layers.unregistered_norm import structural_adapter
from passportize.utils.names import describe_type, is_name_of_norm

__all__ = ["FoundNorm", "find_norms", "measures_batch"]

_NORM_PARENTS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True)
class FoundNorm:
    """A normalization layer, its names, and its adapter or the reason why it has none."""

    name: str
    aliases: tuple[str, ...]
    module: nn.Module
    adapter: type[PassportLayer] | None
    reason: str = ""


def find_norms(model: nn.Module) -> list[FoundNorm]:
    """Every module that is, or looks like, a normalization layer, in registration order.

    Args:
        model: Any module; it is only read.

    Raises:
        UninitializedModule: A lazy norm has not seen data yet.
    """
    names: dict[int, list[str]] = {}
    modules: dict[int, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
        modules[id(module)] = module
    found = []
    inside: set[int] = set()
    for key, module in modules.items():
        first, *aliases = names[key]
        if key in inside:
            continue
        adapter = adapter_for(module)
        if adapter is not None:
            reason = _set_on_it(module) or adapter.refusal(module)
            found.append(
                FoundNorm(first, tuple(aliases), module, None if reason else adapter, reason)
            )
        elif plain_class(module) in NOT_ADAPTED:
            # Norms that it keeps inside are its own affair.
            inside.update(id(child) for child in module.modules())
            found.append(
                FoundNorm(first, tuple(aliases), module, None, NOT_ADAPTED[plain_class(module)])
            )
        elif _looks_like_norm(module):
            adapter = structural_adapter(module)
            reason = _set_on_it(module)
            if adapter is None and not reason:
                reason = _reason(first, module)
            found.append(
                FoundNorm(first, tuple(aliases), module, None if reason else adapter, reason)
            )
    return found


def measures_batch(norm: nn.Module) -> bool:
    """Whether a norm without an adapter takes its statistics over the samples of a batch."""
    return isinstance(norm, _BatchNorm) or any(
        isinstance(getattr(norm, name, None), Tensor) for name in STATISTICS
    )


def _looks_like_norm(module: nn.Module) -> bool:
    if isinstance(module, PassportLayer):
        return False
    if isinstance(module, _NORM_PARENTS):
        return True
    # A container that merely speaks of norms ("PreNorm") has its norms inside.
    kind = plain_class(module)
    inside = any(name != "parametrizations" for name, _ in module.named_children())
    return is_name_of_norm(kind.__name__) and not inside


def _set_on_it(module: nn.Module) -> str:
    """Why a norm that was patched cannot get a private branch; empty if it can."""
    if foreign_forward(module):
        return (
            "its forward was set on the object and is no method of it (as hooks of accelerate "
            "are), so it cannot run with other factors; passportize first and patch afterwards"
        )
    return ""


def _reason(name: str, module: nn.Module) -> str:
    kind = describe_type(plain_class(module))
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        raise UninitializedModule(
            f"{name}: {kind} has not seen data yet, so its width is unknown; run the model once "
            "on an example input before passportizing it"
        )
    if not any(True for _ in module.parameters(recurse=False)) and not isinstance(
        module, _NORM_PARENTS
    ):
        return "has no affine parameters and no statistics, so nothing to bind"
    return (
        f"no adapter for exactly {kind}; add one with "
        f"passportize.register_adapter({plain_class(module).__name__}, ...), see docs/adapters.md"
    )
