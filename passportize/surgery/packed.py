"""Models that take several graphs packed into one batch of nodes and edges."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from torch import nn

from passportize.tracing.example_inputs import ExampleInputs
from passportize.utils.foreign import is_packed_by_pyg
from passportize.utils.frozen import trial

__all__ = ["call_of", "packed_module"]


def packed_module(model: nn.Module) -> str | None:
    """Name of the first module that shows that a model works on packed graphs, or None.

    The rows of such a batch are nodes, the edges name them by number, so nothing can be appended
    to it. PyTorch Geometric need not be installed: its classes are told by name.
    """
    return next((name for name, module in model.named_modules() if is_packed_by_pyg(module)), None)


def call_of(model: nn.Module, inputs: ExampleInputs) -> ExampleInputs | None:
    """What a function that runs a model by itself calls it with first; None if it does not run.

    Args:
        model: The model; left as it was.
        inputs: Holds the function.
    """
    calls: list[ExampleInputs] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(ExampleInputs(args, kwargs).copy())

    with trial(model):
        model.register_forward_pre_hook(note, with_kwargs=True)
        with suppress(Exception):  # whatever it raises: there may be a call all the same
            inputs.call(model.eval())
    return calls[0] if calls else None
