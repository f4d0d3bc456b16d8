"""Calls that happen whole or not at all, wherever they are interrupted.

A ``with`` block puts things back on leaving, but an interruption may come while it does so. So the
functions that change a model are wrapped once more: what the model and the process were before is
noted, and if the call does not end, all of it is put back at once.
"""

from __future__ import annotations

import functools
import gc
import random
import sys
import warnings
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.overrides import _get_current_function_mode_stack, _pop_mode
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils._python_dispatch import _pop_mode as _pop_dispatch_mode

from passportize.utils.frozen import MODULE_CALLS, paused_collection
from passportize.utils.fused_kernels import FUSED_KERNELS
from passportize.utils.records import ModuleRecord, tensor_values, write_back

__all__ = ["all_or_nothing", "process_as_before"]

Function = TypeVar("Function", bound=Callable[..., Any])


def all_or_nothing(function: Function) -> Function:
    """Leave the model that a function is called with as it was, unless the function returns.

    Classes, attributes, submodules, hooks, flags and buffers are put back, and so are random
    states, warning filters and the switches of torch that surgery touches. The values of parameters
    are the function's own business.

    Args:
        function: Takes a model first, or as ``model=``.
    """

    @functools.wraps(function)
    def whole(*args: Any, **kwargs: Any) -> Any:
        model = args[0] if args else kwargs.get("model")
        if not isinstance(model, nn.Module):
            return function(*args, **kwargs)
        process, before = _Process(draws=True), None
        try:
            with paused_collection():
                before = _Model(model)
            # Nothing may come after it: once the function has returned, all has happened.
            return function(*args, **kwargs)
        except BaseException:
            process.put_back()
            if before is not None:
                before.put_back()
            raise

    return cast("Function", whole)


def process_as_before(function: Function) -> Function:
    """Leave the switches of torch and Python as they were, unless the function returns."""

    @functools.wraps(function)
    def whole(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        process = _Process(draws=False)
        try:
            return function(*args, **kwargs)
        except BaseException:
            process.put_back()
            raise

    return cast("Function", whole)


class _Process:
    """What the process has switched on, and where its random numbers are."""

    def __init__(self, draws: bool) -> None:
        self.collects = gc.isenabled()
        self.call = nn.Module.__call__
        self.locks = [
            (lock, lock._is_owned())  # type: ignore[attr-defined]
            for lock in (MODULE_CALLS, FUSED_KERNELS.lock)
        ]
        self.functions = torch._C._get_torch_function_state()  # type: ignore[attr-defined]
        self.function_modes = _function_modes()
        self.dispatch_modes = len(_get_current_dispatch_mode_stack())
        self.grad = torch.is_grad_enabled()
        self.fused = FUSED_KERNELS.depth()
        self.autocast = {
            device: torch.is_autocast_enabled(device)
            for device in ("cpu", "cuda")
            if torch.amp.is_autocast_available(device)
        }
        self.filters = warnings.filters
        self.filtered = list(warnings.filters)
        self.draws = _random_states() if draws else None

    def put_back(self) -> None:
        if self.collects:
            gc.enable()
        torch._C._set_torch_function_state(self.functions)  # type: ignore[attr-defined]
        while _function_modes() > self.function_modes:
            _pop_mode()  # type: ignore[no-untyped-call]
        while len(_get_current_dispatch_mode_stack()) > self.dispatch_modes:
            _pop_dispatch_mode()
        nn.Module.__call__ = self.call  # type: ignore[method-assign]
        for lock, owned in self.locks:
            while not owned and lock._is_owned():  # type: ignore[attr-defined]
                lock.release()
        torch.set_grad_enabled(self.grad)
        FUSED_KERNELS.leave_to(self.fused)
        for device, enabled in self.autocast.items():
            torch.set_autocast_enabled(device, enabled)
        warnings.filters = self.filters
        self.filters[:] = self.filtered  # type: ignore[index]
        if self.draws is not None:
            random.setstate(self.draws[0])
            torch.set_rng_state(self.draws[1])
            if self.draws[2] is not None:
                sys.modules["numpy"].random.set_state(self.draws[2])


class _Model:
    """A model as it was."""

    def __init__(self, model: nn.Module) -> None:
        self.records = [ModuleRecord(module) for module in model.modules()]
        self.classes = [(module, module.__class__) for module in model.modules()]
        self.gradients = [
            (parameter, parameter.grad)
            for parameter in model.parameters()
            if not is_lazy(parameter)
        ]
        self.values = tensor_values(self.records, buffers=True)

    def put_back(self) -> None:
        for module, kind in self.classes:
            if module.__class__ is not kind:
                module.__class__ = kind
        for record in self.records:
            record.restore()
        for parameter, gradient in self.gradients:
            if parameter.grad is not gradient:
                parameter.grad = gradient
        write_back(self.values)


def _random_states() -> tuple[Any, torch.Tensor, Any]:
    numpy = sys.modules.get("numpy")
    drawn = None if numpy is None else numpy.random.get_state()
    return random.getstate(), torch.get_rng_state(), drawn


def _function_modes() -> int:
    return len(_get_current_function_mode_stack())  # type: ignore[no-untyped-call]
