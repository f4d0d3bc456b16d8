"""Models that are wrapped, sharded or compiled already, which surgery must not reach through."""

from __future__ import annotations

from torch import nn
from torch.jit import ScriptModule

from passportize.errors import WrappedModel
from passportize.utils.foreign import WRAPPERS
from passportize.utils.names import is_name_of_norm

__all__ = ["refuse_scripted", "refuse_wrapped"]


def refuse_wrapped(model: nn.Module) -> None:
    """Raise WrappedModel if surgery would reach through DDP, FSDP, torch.compile or TorchScript.

    Parts in TorchScript without norms are left alone.
    """
    _refuse(model, nn.Module)


def refuse_scripted(model: nn.Module) -> None:
    """Raise WrappedModel if a model, or a part of it with norms, is TorchScript."""
    _refuse(model, ScriptModule)


def _refuse(model: nn.Module, kind: type[nn.Module]) -> None:
    for name, module in model.named_modules():
        if not isinstance(module, kind):
            continue
        if name and isinstance(module, ScriptModule) and not _has_norms(module):
            continue
        for base in type(module).__mro__:
            advice = WRAPPERS.get(base.__name__)
            if advice is not None and base.__module__.startswith("torch."):
                place = f"its submodule {name!r}" if name else "the model"
                raise WrappedModel(
                    f"{place} is wrapped in {base.__name__}; passportize and unpassportize take "
                    f"the plain model: {advice}"
                )


def _has_norms(script: ScriptModule) -> bool:
    return any(is_name_of_norm(str(part.original_name)) for part in script.modules())
