"""Models that are wrapped, sharded or compiled already, which surgery must not reach through."""

from __future__ import annotations

from torch import nn

from passportize.errors import WrappedModel

__all__ = ["refuse_wrapped"]

_WRAPPERS = {
    "DistributedDataParallel": "wrap it in DDP afterwards",
    "DataParallel": "wrap it in DataParallel afterwards (DDP is better)",
    "FullyShardedDataParallel": "shard it afterwards",
    "FSDPModule": "call fully_shard afterwards",
    "OptimizedModule": "call torch.compile afterwards",
    "ScriptModule": "TorchScript cannot be changed; start from the Python model",
    "RecursiveScriptModule": "TorchScript cannot be changed; start from the Python model",
}


def refuse_wrapped(model: nn.Module) -> None:
    """Raise WrappedModel if surgery would reach through DDP, FSDP, torch.compile or TorchScript."""
    for name, module in model.named_modules():
        for base in type(module).__mro__:
            advice = _WRAPPERS.get(base.__name__)
            if advice is not None and base.__module__.startswith("torch."):
                place = f"its submodule {name!r}" if name else "the model"
                raise WrappedModel(
                    f"{place} is wrapped in {base.__name__}; passportize and unpassportize take "
                    f"the plain model: {advice}"
                )
