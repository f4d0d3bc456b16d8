"""Models that take several graphs packed into one batch of nodes and edges."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from passportize.layers.batch import is_index
from passportize.tracing.example_inputs import ExampleInputs
from passportize.tracing.trace import can_run
from passportize.utils.foreign import is_packed_by_pyg
from passportize.utils.frozen import close, trial
from passportize.utils.trees import map_tensors, tensors_in

__all__ = ["packed_inputs", "packed_module"]


def packed_module(model: nn.Module) -> str | None:
    """Name of the first module that shows that a model works on packed graphs, or None.

    The rows of such a batch are nodes, the edges name them by number, so nothing can be appended
    to it. PyTorch Geometric need not be installed: its classes are told by name.
    """
    return next((name for name, module in model.named_modules() if is_packed_by_pyg(module)), None)


def packed_inputs(model: nn.Module, example_inputs: Any) -> str:
    """Why samples cannot be appended to a batch such as this one; empty where they can.

    A batch vector says which rows belong together, a pooling function in the model's code reads
    it, and no module tells. So where the input may be packed (it holds no tensor that could be
    appended to, tensors of different lengths, or a vector of whole numbers), the model is tried:
    two batches in one must give what each gives alone. The model is left as it was.

    Args:
        model: A plain model.
        example_inputs: As ``passportize`` takes them, or None.
    """
    inputs = ExampleInputs.of(example_inputs) if example_inputs is not None else None
    if inputs is None or not can_run(model, inputs):
        return ""
    try:
        called = inputs.copy() if inputs.runner is None else _call_of(model, inputs)
        arguments = (called.args, dict(called.kwargs))
        tensors = [tensor for tensor in tensors_in(arguments) if tensor.dim()]
        if not tensors:
            return "its input holds no tensor with a batch dimension"
        rows = tensors[0].shape[0]
        if not any(tensor.shape[0] != rows or is_index(tensor) for tensor in tensors):
            return ""
        other = map_tensors(lambda tensor: _changed(tensor, rows), arguments)
        plain, changed = _run(model, arguments), _run(model, other)
    except Exception:  # the model does not run on its input: others will say so
        return ""
    try:
        together = _run(model, map_tensors(lambda tensor: _joined(tensor, rows), arguments))
    except Exception as error:
        return f"two batches in one raise {type(error).__name__}: {error}"
    return _difference(plain, changed, together, rows)


def _changed(tensor: Tensor, rows: int) -> Tensor:
    """Other samples of the same kind: in reverse, and larger where they are no whole numbers."""
    if tensor.dim() and tensor.shape[0] == rows and tensor.is_floating_point():
        return tensor.flip(0) * 1.5
    return tensor


def _joined(tensor: Tensor, rows: int) -> Tensor:
    """What joint training would make of it: whatever has no such rows stays as it is."""
    if not tensor.dim() or tensor.shape[0] != rows:
        return tensor
    return torch.cat([tensor, _changed(tensor, rows)])


def _run(model: nn.Module, arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> list[Tensor]:
    with trial(model):
        torch.manual_seed(0)
        model.eval()
        return list(tensors_in(ExampleInputs(*arguments).call(model)))


def _call_of(model: nn.Module, inputs: ExampleInputs) -> ExampleInputs:
    """What a function that runs the model by itself calls it with."""
    calls: list[ExampleInputs] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(ExampleInputs(args, kwargs).copy())

    with trial(model):
        model.register_forward_pre_hook(note, with_kwargs=True)
        inputs.call(model.eval())
    return calls[0]


def _difference(
    plain: list[Tensor], changed: list[Tensor], together: list[Tensor], rows: int
) -> str:
    for one, two, both in zip(plain, changed, together, strict=True):
        if not both.dim():
            continue
        if both.shape[0] != 2 * rows or len(one) != rows:
            return f"two batches of {rows} rows in one give an output of {len(both)} rows"
        if not (close(both[:rows], one) and close(both[rows:], two)):
            return "two batches in one give other numbers than each of them alone"
    return ""
