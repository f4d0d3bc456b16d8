"""Find the weight before each norm from one real forward pass, by walking the autograd graph."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from passportize.anchors.autograd_rules import AutogradSearch
from passportize.anchors.trail import Attempt
from passportize.errors import ExampleInputFailed, UninitializedModule
from passportize.signature.site import Anchor
from passportize.tracing.example_inputs import ExampleInputs
from passportize.tracing.record import hooks_may_help
from passportize.tracing.weight_layers import owns_weight
from passportize.utils.frozen import (
    MODULE_CALLS,
    eager_mode,
    frozen_model,
    frozen_random_state,
    silent_warnings,
)
from passportize.utils.trees import tensors_in

__all__ = ["Walk", "walk_autograd"]


@dataclass
class Walk:
    """What one real forward pass showed.

    Attributes:
        anchors: Anchor of each norm that has one.
        executed: Names of the norms that ran.
        per_sample: How many numbers each takes in for one sample, in its first call.
        attempts: What was tried for each norm that ran.
    """

    anchors: dict[str, Anchor] = field(default_factory=dict)
    executed: set[str] = field(default_factory=set)
    per_sample: dict[str, float] = field(default_factory=dict)
    attempts: dict[str, list[Attempt]] = field(default_factory=dict)


@dataclass
class _Calls:
    """Tensors seen by the modules of interest, in order of execution."""

    norms: dict[str, tuple[Tensor | None, Any]] = field(default_factory=dict)
    consumers: list[tuple[nn.Module, Tensor]] = field(default_factory=list)
    order: dict[str, int] = field(default_factory=dict)
    stack: list[str] = field(default_factory=list)
    failed_at: str = ""


def walk_autograd(
    model: nn.Module, widths: Mapping[str, Sequence[int]], inputs: ExampleInputs
) -> Walk:
    """Run the model once in eval mode and look for the nearest weight before each norm.

    The walk starts at the input of a norm and takes the linear map by a parameter that was
    executed last, without looking behind one; a concatenation counts as one such map if the widths
    of what it joins add up to the norm's. If that finds no weight of fitting width, the first
    linear layer that reads the norm's output is taken, and failing that the last weight of fitting
    width behind whatever operations.

    Buffers, training flags, ``requires_grad``, cached attributes and random states are put back,
    also after an exception; forward hooks run only if the model does not run without.

    Raises:
        ExampleInputFailed: The model raised an error.
        UninitializedModule: A lazy module has not seen data yet.
    """
    for name, parameter in model.named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise UninitializedModule(
                f"{name.rpartition('.')[0] or 'the model'} is lazy and has not seen data, so its "
                "shapes are unknown. Run the model once on real data first"
            )
    calls, failure = _run(model, widths, inputs, hooks=False)
    if failure is not None and hooks_may_help(model):
        calls, failure = _run(model, widths, inputs, hooks=True)
    if failure is not None:
        raise ExampleInputFailed(_message(model, inputs, calls.failed_at, failure)) from failure
    search = AutogradSearch(model, set(widths))
    walk = Walk(executed=set(calls.norms))
    rows = next((tensor.shape[0] for _, tensor in inputs.tensors() if tensor.dim()), 0)
    for name, (source, result) in calls.norms.items():
        if source is not None and source.dim():
            walk.per_sample[name] = source.numel() / (rows or max(1, source.shape[0]))
        later = calls.consumers[calls.order[name] :]
        walk.attempts[name] = search.search(source, result, later, widths[name])
        anchor = walk.attempts[name][-1].anchor if walk.attempts[name] else None
        if anchor is not None:
            walk.anchors[name] = anchor
    return walk


def _message(model: nn.Module, inputs: ExampleInputs, where: str, failure: Exception) -> str:
    first = next(model.parameters(), None)
    devices = {tensor.device for _, tensor in inputs.tensors()}
    advice = "Pass example_inputs= that the model runs on in eval mode."
    if first is not None and devices and devices != {first.device}:
        given = ", ".join(sorted(map(str, devices)))
        advice = f"The model is on {first.device}, the example input on {given}: move one of them."
    elif isinstance(failure, ImportError):
        advice = "Install the package that is missing; the model cannot run without it."
    elif first is not None and not first.is_cuda and _asks_for_cuda(failure):
        advice = (
            "It seems to run on CUDA only: move the model and the example input there first "
            "(model.cuda()), on a machine that has one, or name the weights in anchors= and pass "
            "no example input."
        )
    place = f"its module {where!r}" if where else "it"
    return (
        f"The model does not run on the example input: {place} raised "
        f"{type(failure).__name__}: {failure}. {advice}"
    )


def _asks_for_cuda(failure: Exception) -> bool:
    text = str(failure).lower()
    return "cuda" in text or "nvidia" in text or "gpu" in text


def _run(
    model: nn.Module, widths: Mapping[str, Sequence[int]], inputs: ExampleInputs, hooks: bool
) -> tuple[_Calls, Exception | None]:
    calls = _Calls()
    failure: Exception | None = None
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with (
        MODULE_CALLS,
        frozen_model(model, values=True),
        frozen_random_state(cuda=True),
        silent_warnings(),
        eager_mode(),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        try:
            for parameter, _ in flags:
                if parameter.is_floating_point() or parameter.is_complex():
                    parameter.requires_grad_(True)
            for module in model.modules():
                vars(module)["training"] = False
            with _watched(model, set(widths), calls, hooks):
                inputs.copy().call(model)
        except Exception as error:
            failure = error
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
    return calls, failure


@contextmanager
def _watched(model: nn.Module, norms: set[str], calls: _Calls, hooks: bool) -> Iterator[None]:
    """Note what norms and linear layers are called with, in this thread."""
    names = {id(module): name for name, module in model.named_modules()}
    original, thread = nn.Module.__call__, threading.get_ident()

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        name = names.get(id(module))
        if name is None or threading.get_ident() != thread:
            return original(module, *args, **kwargs)
        source = next(tensors_in((args, kwargs)), None)
        if source is not None and owns_weight(module):
            calls.consumers.append((module, source))
        run: Callable[..., Any] = module.forward
        calls.stack.append(name)
        try:
            result = original(module, *args, **kwargs) if hooks else run(*args, **kwargs)
        except Exception:
            calls.failed_at = calls.failed_at or name
            raise
        finally:
            calls.stack.pop()
        if name in norms and name not in calls.norms:
            calls.norms[name] = (source, result)
            calls.order[name] = len(calls.consumers)
        return result

    nn.Module.__call__ = call  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__call__ = original  # type: ignore[method-assign]
