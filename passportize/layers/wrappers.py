"""Models that are wrapped, sharded or compiled already, which surgery must not reach through."""

from __future__ import annotations

from torch import nn

from passportize.errors import WrappedModel
from passportize.utils.foreign import WRAPPERS

__all__ = ["refuse_wrapped"]


def refuse_wrapped(model: nn.Module) -> None:
    """Raise WrappedModel if surgery would reach through DDP, FSDP, torch.compile or TorchScript."""
    for name, module in model.named_modules():
        for base in type(module).__mro__:
            advice = WRAPPERS.get(base.__name__)
            if advice is not None and base.__module__.startswith("torch."):
                place = f"its submodule {name!r}" if name else "the model"
                raise WrappedModel(
                    f"{place} is wrapped in {base.__name__}; passportize and unpassportize take "
                    f"the plain model: {advice}"
                )
