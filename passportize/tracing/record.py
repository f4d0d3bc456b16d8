"""Record one forward pass of a model as a torch.fx graph, on shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from passportize.tracing.example_inputs import ExampleInputs
from passportize.tracing.recorder import MetaRecorder
from passportize.utils.foreign import hooks_come_late
from passportize.utils.frozen import (
    MODULE_CALLS,
    eager_mode,
    frozen_model,
    frozen_random_state,
    paused_collection,
    silent_warnings,
)

__all__ = ["Recording", "hooks_may_help", "record_graph"]


def _call_with_hooks(
    recorder: MetaRecorder, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    for key, hook in list(module._forward_pre_hooks.items()):
        if key in module._forward_pre_hooks_with_kwargs:
            changed = hook(module, args, kwargs)
            if changed is not None:
                args, kwargs = changed
        else:
            changed = hook(module, args)
            if changed is not None:
                args = changed if isinstance(changed, tuple) else (changed,)
    output = recorder.call(module, args, kwargs)
    for key, after in list(module._forward_hooks.items()):
        with_kwargs = key in module._forward_hooks_with_kwargs
        given = (args, kwargs, output) if with_kwargs else (args, output)
        changed = after(module, *given)
        output = output if changed is None else changed
    return output


@contextmanager
def _patched(recorder: MetaRecorder, hooks: bool) -> Iterator[None]:
    """Send attribute reads and calls of modules to the recorder, for this thread only."""
    read, call = nn.Module.__getattr__, nn.Module.__call__

    def patched_read(module: nn.Module, name: str) -> Any:
        return recorder.attribute(module, read(module, name))

    def patched_call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not recorder.owns(module):
            return call(module, *args, **kwargs)
        if hooks and (module._forward_hooks or module._forward_pre_hooks):
            return _call_with_hooks(recorder, module, args, kwargs)
        return recorder.call(module, args, kwargs)

    nn.Module.__getattr__ = patched_read  # type: ignore[method-assign]
    nn.Module.__call__ = patched_call  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__getattr__ = read  # type: ignore[method-assign]
        nn.Module.__call__ = call  # type: ignore[method-assign]


def hooks_may_help(model: nn.Module) -> bool:
    """Whether a model that failed without its forward hooks may run with them.

    The hooks of lazy modules would give the real model its shapes, so they are never run. Models
    of transformers register theirs in the forward pass that needs them first.
    """
    hooked = any(
        m._forward_hooks or m._forward_pre_hooks or hooks_come_late(m) for m in model.modules()
    )
    return hooked and not any(nn.parameter.is_lazy(p) for p in model.parameters())


def _is_computed(value: Any) -> bool:
    """Whether an attribute keeps what was computed of parameters, for each device it ran on.

    A graph would say that it is a constant, where it moves with the parameters.
    """
    if type(value) is not dict or not value:
        return False
    return all(
        isinstance(tensor, torch.Tensor) and _names_device(key) for key, tensor in value.items()
    )


def _names_device(key: object) -> bool:
    if isinstance(key, torch.device):
        return True
    try:
        return isinstance(key, str) and bool(torch.device(key))
    except RuntimeError:
        return False


@dataclass
class Recording:
    """One forward pass as a graph.

    Attributes:
        graph: The steps, in order of execution; ``node.meta["shape"]`` is the shape of a tensor.
        called: Names of the modules that ran (first registered names).
        failure: What stopped the forward pass, or None. The graph then holds the steps until then.
        failed_at: Name of the innermost module that failed.
        shapes: Whether the steps carry shapes.
        guesses: How often the value of a tensor was asked for and guessed.
    """

    graph: fx.Graph
    called: set[str]
    failure: Exception | None = None
    failed_at: str = ""
    shapes: bool = False
    guesses: int = 0


def record_graph(
    model: nn.Module,
    inputs: ExampleInputs,
    leaf: Callable[[nn.Module], str | None],
    training: bool = False,
    hooks: bool = False,
    guess: bool = False,
) -> Recording:
    """Record one forward pass on shapes alone; the model is left exactly as it was.

    Args:
        model: The model, on any device.
        inputs: What to call it with.
        leaf: Says whether a module is one step: :data:`LEAF_NORM` (its output has the shape of
            its input, and it is not run), :data:`LEAF_WEIGHT` (run on the meta device) or None.
        training: The training flag that every module shows meanwhile.
        hooks: Whether forward hooks run. Hooks of the user are none of our business, so first try
            without; some models do their work in hooks.
        guess: Whether to go on where the value of a tensor is asked for: conditions are taken as
            false, numbers as one.
    """
    recorder = MetaRecorder(model, leaf, guess)
    failure: Exception | None = None
    with (
        MODULE_CALLS,
        frozen_model(model),
        frozen_random_state(cuda=any(p.is_cuda for p in model.parameters())),
        torch.no_grad(),
        silent_warnings(),
        paused_collection(),
        eager_mode(),
    ):
        for module in model.modules():
            vars(module)["training"] = training
            for name, value in list(vars(module).items()):
                if _is_computed(value):
                    vars(module)[name] = {}
        run = inputs.copy()
        for name, tensor in run.tensors():
            recorder.add_input(name, tensor)
        with _patched(recorder, hooks):
            try:
                with recorder:
                    run.call(model)
            except Exception as error:
                failure = error.with_traceback(None)
    return Recording(
        graph=recorder.graph,
        called={recorder.name_of(module) for module in recorder.called},
        failure=failure,
        failed_at=recorder.name_of(recorder.failed) if recorder.failed is not None else "",
        shapes=True,
        guesses=recorder.guesses,
    )
