"""Everything that looking at a model could leave behind."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Classes, modes, attributes, hooks, tensors and random numbers as they are now."""
    return {
        "classes": [type(module) for module in model.modules()],
        "training": [module.training for module in model.modules()],
        "vars": [list(vars(module)) for module in model.modules()],
        "hooks": [
            (list(m._forward_hooks.values()), list(m._forward_pre_hooks.values()))
            for m in model.modules()
        ],
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "identity": [id(tensor) for tensor in (*model.parameters(), *model.buffers())],
        "grad": [parameter.requires_grad for parameter in model.parameters()],
        "random": torch.get_rng_state(),
    }


def unchanged(model: nn.Module, before: dict[str, Any]) -> None:
    """Compare with a :func:`snapshot`, which is used up."""
    after = snapshot(model)
    states = before.pop("state"), after.pop("state")
    random = before.pop("random"), after.pop("random")
    assert before == after
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert torch.equal(*random)
