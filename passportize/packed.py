"""Models that take several graphs packed into one batch of nodes and edges."""

from __future__ import annotations

from torch import nn

__all__ = ["packed_module"]

# PyG's batch norm sees rows only, like that of torch, and serves dense models too.
_PACKED_NORMS = "torch_geometric.nn.norm."
_NOT_PACKED = "torch_geometric.nn.norm.batch_norm"


def packed_module(model: nn.Module) -> str | None:
    """Name of the first module that shows that a model works on packed graphs, or None.

    The rows of such a batch are nodes, the edges name them by number, so nothing can be appended
    to it. PyTorch Geometric need not be installed: its classes are told by name.
    """
    return next((name for name, module in model.named_modules() if _is_packed(module)), None)


def _is_packed(module: nn.Module) -> bool:
    for base in type(module).__mro__:
        if base.__name__ == "MessagePassing" and base.__module__.startswith("torch_geometric.nn."):
            return True
        if base.__module__.startswith(_PACKED_NORMS) and base.__module__ != _NOT_PACKED:
            return True
    return False
