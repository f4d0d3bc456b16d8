"""Read the graph of a model without running it for real."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from passportize.tracing.example_inputs import ExampleInputs, default_inputs
from passportize.tracing.record import Recording, hooks_may_help, record_graph
from passportize.tracing.recorder import LEAF_NORM, LEAF_OTHER, LEAF_WEIGHT
from passportize.tracing.symbolic import trace_leaves
from passportize.tracing.weight_layers import is_weight_module, owns_weight

__all__ = ["Trace", "can_run", "trace_model"]

_log = logging.getLogger(__name__)


@dataclass
class Trace:
    """What could be read of a model.

    Attributes:
        recordings: Graphs, the most trusted first. The first is of the whole model if
            :attr:`complete`.
        method: ``"fx-meta"`` (shapes are known), ``"fx-leaf"`` (they are not) or ``""``.
        complete: Whether every module that runs is in one of the graphs, for certain.
        reason: Why it is not complete.
        notes: What a user should know about how the model was read.
    """

    recordings: list[Recording] = field(default_factory=list)
    method: str = ""
    complete: bool = False
    reason: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def called(self) -> set[str]:
        """Names of the modules that some graph runs."""
        return set().union(*(recording.called for recording in self.recordings))


def trace_model(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    norms: Collection[str] = (),
    training: bool | None = None,
) -> Trace:
    """Read the graph of a model; the model is left exactly as it was.

    Args:
        model: The model, on any device, in any mode.
        example_inputs: A tensor, a tuple of arguments, a dict of keyword arguments or a function
            that runs the model; by default a batch of two of the size in the model's
            ``default_cfg``, and failing that sizes guessed from its first layer. Where no forward
            pass on shapes gets to its end, the model is traced symbolically, without shapes.
        norms: Names of the modules to take as one step each, besides linear layers and
            convolutions.
        training: The mode to read; None reads both.
    """
    kinds = leaf_kinds(model, norms)
    modes = (False, True) if training is None else (training,)
    candidates = list(_candidates(model, example_inputs))
    trace = Trace()
    for inputs in candidates:
        recordings, failed = _record_modes(model, inputs, kinds, modes)
        if failed is None:
            trace.recordings, trace.method, trace.complete = recordings, "fx-meta", True
            trace.notes += _origin_note(inputs)
            return trace
        if not trace.reason:
            trace.recordings, trace.reason = recordings, _reason(failed)
    trace.reason = trace.reason or "no input shape is known"
    if example_inputs is not None and can_run(model, candidates[0]):
        return trace  # a real forward pass will tell more than the guesses that follow
    for inputs in candidates:
        recordings, failed = _record_modes(model, inputs, kinds, modes, guess=True)
        if failed is None:
            trace.recordings, trace.method = recordings, "fx-meta"
            trace.notes += _origin_note(inputs)
            trace.notes.append(
                f"{trace.reason}; conditions on values were taken as false, so norms behind them "
                "may be missing: pass example_inputs= with real data to be sure"
            )
            return trace
    _read_leaves(model, kinds, modes, trace)
    return trace


def can_run(model: nn.Module, inputs: ExampleInputs) -> bool:
    """Whether a real forward pass is possible: neither the model nor its input is on meta."""
    return inputs.is_real and not any(parameter.is_meta for parameter in model.parameters())


def _origin_note(inputs: ExampleInputs) -> list[str]:
    if inputs.origin != "guessed":
        return []
    return [f"read with a guessed input of shape {tuple(inputs.args[0].shape)}"]


def _read_leaves(
    model: nn.Module, kinds: dict[int, str], modes: Sequence[bool], trace: Trace
) -> None:
    """What is left when no forward pass could be recorded to its end: trace without shapes."""
    for module in model.modules():
        # Without shapes, a function of a weight tells nothing: the module has to stand for it.
        if owns_weight(module):
            kinds.setdefault(id(module), LEAF_WEIGHT)
    complete = True
    traced: list[Recording] = []
    for mode in modes:
        recordings, whole = trace_leaves(model, lambda m: kinds.get(id(m)), mode)
        traced += recordings
        complete = complete and whole
    trace.complete = complete
    trace.method = "fx-leaf" if any(recording.called for recording in traced) else ""
    trace.recordings += traced


def _record_modes(
    model: nn.Module,
    inputs: ExampleInputs,
    kinds: dict[int, str],
    modes: Sequence[bool],
    guess: bool = False,
) -> tuple[list[Recording], Recording | None]:
    """A recording for each mode until one fails; that one is also given by itself."""
    recordings: list[Recording] = []
    for mode in modes:
        recordings.append(_record(model, inputs, kinds, mode, guess))
        if recordings[-1].failure is not None:
            return recordings, recordings[-1]
    return recordings, None


def _reason(recording: Recording) -> str:
    where = recording.failed_at or "the model"
    error = recording.failure
    return f"{where} could not be read on shapes alone: {type(error).__name__}: {error}"


def _record(
    model: nn.Module, inputs: ExampleInputs, kinds: dict[int, str], training: bool, guess: bool
) -> Recording:
    def leaf(module: nn.Module) -> str | None:
        return kinds.get(id(module))

    recording = record_graph(model, inputs, leaf, training, guess=guess)
    if recording.failure is not None and hooks_may_help(model):
        again = record_graph(model, inputs, leaf, training, hooks=True, guess=guess)
        if again.failure is None:
            return again
    return recording


def leaf_kinds(model: nn.Module, norms: Collection[str]) -> dict[int, str]:
    """Kind of every module that is one step of a graph, by identity: norms and weight modules.

    A norm that holds another norm of ``norms`` is not a step itself.
    """
    outer = {name.rpartition(".")[0] for name in norms}
    for name in list(outer):
        while name:
            name = name.rpartition(".")[0]
            outer.add(name)
    kinds: dict[int, str] = {}
    for name, module in model.named_modules():
        if name in norms and name not in outer:
            kinds[id(module)] = LEAF_NORM
        elif name in outer:
            continue  # a convolution with its norm inside, say
        elif is_weight_module(module):
            kinds[id(module)] = LEAF_WEIGHT
        elif isinstance(module, nn.RNNBase):
            kinds[id(module)] = LEAF_OTHER
    return kinds


def _candidates(model: nn.Module, example_inputs: Any) -> Iterator[ExampleInputs]:
    if example_inputs is not None:
        yield ExampleInputs.of(example_inputs)
        return
    named = default_inputs(model)
    if named is not None:
        yield named
    size = named.args[0].shape[2:] if named is not None else ()
    for tensor in _guessed_tensors(model, size):
        yield ExampleInputs(args=(tensor,), origin="guessed")


def _guessed_tensors(model: nn.Module, size: Sequence[int] = ()) -> Iterator[Tensor]:
    """Inputs that the first layer could take, a known image size first, then the usual ones."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            yield torch.zeros(2, 16, dtype=torch.long)
            return
        if is_weight_module(module):
            for shape in _guessed_shapes(module, size):
                dtype = next(module.parameters()).dtype
                yield torch.empty(shape, dtype=dtype, device="meta")
            return


def _guessed_shapes(module: nn.Module, known: Sequence[int]) -> Iterator[tuple[int, ...]]:
    if isinstance(module, nn.modules.conv._ConvNd):
        channels, space = module.in_channels, len(module.kernel_size)
        if len(known) == space:
            yield (2, channels, *known)
        for size in {1: (1024, 64), 2: (224, 32, 28, 64), 3: (32, 16, 64)}[space]:
            yield (2, channels, *[size] * space)
    elif isinstance(module, nn.Linear):
        yield (2, module.in_features)
        yield (2, 16, module.in_features)
