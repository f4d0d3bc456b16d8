"""Everything of a model and the process that looking at a model could leave changed."""

from __future__ import annotations

import random
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack


@dataclass(frozen=True)
class Snapshot:
    """Classes, modes, attributes, hooks, tensors, and the state of the process as they are now."""

    modules: dict[str, Any]
    values: dict[str, bytes]
    process: dict[str, Any]

    @classmethod
    def of(cls, model: nn.Module) -> Snapshot:
        modules = {
            name: (
                type(module),
                module.training,
                list(vars(module)),
                list(module._modules),
                list(module._forward_hooks.values()),
                list(module._forward_pre_hooks.values()),
                [
                    (key, id(tensor), tensor.requires_grad)
                    for key, tensor in (*module._parameters.items(), *module._buffers.items())
                    if tensor is not None
                ],
            )
            for name, module in model.named_modules()
        }
        values = {
            name: value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            for name, value in model.state_dict().items()
            if isinstance(value, Tensor) and not value.is_meta
        }
        process = {
            "call": nn.Module.__call__,
            "grad": torch.is_grad_enabled(),
            "fast path": torch.backends.mha.get_fastpath_enabled(),
            "functions": str(torch._C._get_torch_function_state()),
            "autocast": torch.is_autocast_enabled("cpu"),
            "modes": [
                type(mode).__name__
                for stack in (
                    torch.overrides._get_current_function_mode_stack(),
                    _get_current_dispatch_mode_stack(),
                )
                for mode in stack
            ],
            "random": random.getstate(),
            "torch": torch.get_rng_state().numpy().tobytes(),
            "numpy": np.random.get_state()[1].tobytes(),  # type: ignore[union-attr]
            "warnings": len(warnings.filters),
        }
        return cls(modules, values, process)

    def differences(self, other: Snapshot) -> list[str]:
        """What is not as it was, by name."""
        found = []
        for kind in ("modules", "values", "process"):
            mine, theirs = getattr(self, kind), getattr(other, kind)
            names = [*mine, *(name for name in theirs if name not in mine)]
            found += [f"{kind}: {name}" for name in names if mine.get(name) != theirs.get(name)]
        return found


def unchanged(model: nn.Module, before: Snapshot) -> None:
    """Assert that a model and the process are as they were."""
    assert not before.differences(Snapshot.of(model))
