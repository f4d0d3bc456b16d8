"""The second of two separate passes: it sees what the first one saw and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from passportize.errors import BranchMisuse
from passportize.layers.layer import PassportLayer
from passportize.layers.private_branch import Branch
from passportize.layers.switch import Pass, Switch
from passportize.utils.frozen import frozen_model
from passportize.utils.trees import copied, foreign_in, map_tensors

__all__ = ["copied_arguments", "leaving_nothing_behind", "note_writing", "second_pass"]

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
        # In a graph nothing is written where it stands, so that writing back disturbs nobody.
        kept = [(buffer, buffer.clone()) for _, _, buffer in _host_buffers(root)]
        output = root.forward(*args, **kwargs)
        with torch.no_grad():
            for buffer, values in kept:
                buffer.copy_(values)
        return output
    with leaving_nothing_behind(root, switch):
        return root.forward(*args, **kwargs)


@contextmanager
def leaving_nothing_behind(root: nn.Module, switch: Switch) -> Iterator[None]:
    """A second pass within leaves buffers and attributes as the first one left them.

    Args:
        root: The passportized model, or a module that holds it.
        switch: Its switch; notes for the backward pass which part of the graph is the second pass.
    """
    start = torch._C._autograd._get_sequence_nr()
    try:
        with frozen_model(root):
            _spare_buffers(root)
            _spare_parameters(root, switch.written or frozenset())
            yield
    finally:
        switch.second_passes.append((start, torch._C._autograd._get_sequence_nr()))


def note_writing(root: nn.Module, switch: Switch) -> None:
    """Call around the first of two passes: which parameters that do not train it writes into.

    An average of weights (a momentum encoder, a teacher) is renewed in the forward pass by some
    models. The first joint step finds out which.

    Args:
        root: The passportized model.
        switch: Its switch.
    """
    if switch.written is not None or torch.compiler.is_compiling():
        return
    now = {
        name: (parameter.data_ptr(), parameter._version, parameter.detach().flatten()[:8].tolist())
        for name, parameter in root.named_parameters()
        if not parameter.requires_grad and not parameter.is_meta
    }
    if switch.marks is None:
        switch.marks = now
        return
    written = {name for name, mark in now.items() if switch.marks.get(name) != mark}
    switch.written, switch.marks = frozenset(written), None


def _spare_parameters(root: nn.Module, written: frozenset[str]) -> None:
    """Put copies in the place of parameters that a pass writes into."""
    for name in written:
        path, _, own = name.rpartition(".")
        kept = root.get_submodule(path)._parameters
        parameter = kept[own]
        assert parameter is not None
        kept[own] = nn.Parameter(parameter.detach().clone(), requires_grad=False)


def _spare_buffers(root: nn.Module) -> None:
    """Put copies in the place of the host's buffers, which autograd may have noted already."""
    copies: dict[int, Tensor] = {}
    for module, name, buffer in _host_buffers(root):
        module._buffers[name] = copies.setdefault(id(buffer), buffer.clone())


def _host_buffers(root: nn.Module) -> list[tuple[nn.Module, str, Tensor]]:
    """Buffers that both branches share; two-branch layers have statistics for each."""
    return [
        (module, name, buffer)
        for module in root.modules()
        if not isinstance(module, (PassportLayer, Branch))
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
