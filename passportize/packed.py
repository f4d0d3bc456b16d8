"""Models that take several graphs packed into one batch of nodes and edges."""

from __future__ import annotations

from torch import nn

__all__ = ["packed_module"]


def packed_module(model: nn.Module) -> str | None:
    """Name of the first module that shows that a model works on packed graphs, or None.

    The rows of such a batch are nodes, the edges name them by number, so nothing can be appended to
    it. PyTorch Geometric need not be installed: its classes are told by name.
    """
    for name, module in model.named_modules():
        for base in type(module).__mro__:
            kind = base.__module__
            if kind.startswith("torch_geometric.nn.") and (
                base.__name__ == "MessagePassing" or kind.startswith("torch_geometric.nn.norm.")
            ):
                # Its BatchNorm sees rows only, like that of torch, also in a dense model.
                if base.__name__ != "BatchNorm":
                    return name
    return None
