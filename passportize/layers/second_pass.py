"""The second of two separate passes: it sees what the first one saw and leaves nothing behind."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from passportize.errors import BranchMisuse
from passportize.layers.layer import PassportLayer
from passportize.layers.private_branch import Branch
from passportize.layers.switch import Pass, Switch
from passportize.utils.frozen import frozen_model
from passportize.utils.trees import copied, foreign_in, map_tensors

__all__ = ["copied_arguments", "second_pass"]

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def copied_arguments(arguments: Arguments) -> Arguments:
    """Copies of what a model is called with: it may write into them, as PyG's examples do.

    Raises:
        BranchMisuse: A part of them does not let itself be copied.
    """
    if torch.compiler.is_compiling():
        return map_tensors(torch.clone, arguments)
    try:
        return copied(arguments)
    except Exception as error:
        kinds = {type(part).__qualname__ for part in foreign_in(arguments)}
        raise BranchMisuse(
            "two passes need a copy each of the model's input, and there is none of it "
            f"({', '.join(sorted(kinds))}): {type(error).__name__}: {error}. Call the model with "
            "tensors, tuples, lists, mappings or dataclasses"
        ) from error


def second_pass(root: nn.Module, switch: Switch) -> Any:
    """Run the private branch; buffers and attributes of the host stay as the public one left them.

    Args:
        root: The passportized model.
        switch: Its switch; holds the copied arguments.
    """
    assert switch.second is not None
    args, kwargs = switch.second
    switch.current, switch.mixed = Pass.PRIVATE, True
    if torch.compiler.is_compiling():
        return root.forward(*args, **kwargs)
    start = torch._C._autograd._get_sequence_nr()
    try:
        with frozen_model(root):
            _spare_buffers(root)
            return root.forward(*args, **kwargs)
    finally:
        switch.second_passes.append((start, torch._C._autograd._get_sequence_nr()))


def _spare_buffers(root: nn.Module) -> None:
    """Put copies in the place of the host's buffers, which autograd may have noted already."""
    copies: dict[int, Tensor] = {}
    for module in root.modules():
        # Two-branch layers have statistics for each branch.
        if isinstance(module, (PassportLayer, Branch)):
            continue
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = copies.setdefault(id(buffer), buffer.clone())
