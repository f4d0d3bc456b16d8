"""Calls that happen whole or not at all, wherever they are interrupted.

A ``with`` block puts things back on leaving, but an interruption may come while it does so. So the
functions that change a model are wrapped once more: what the model and the process were before is
noted, and if the call does not end, all of it is put back at once.
"""

from __future__ import annotations

import functools
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

from passportize.utils.frozen import MODULE_CALLS
from passportize.utils.fused_kernels import FUSED_KERNELS
from passportize.utils.records import ModuleRecord, tensor_values, write_back

__all__ = ["all_or_nothing"]

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
        before = _Before(model)
        try:
            # Nothing may come after it: once the function has returned, all has happened.
            return function(*args, **kwargs)
        except BaseException:
            before.put_back()
            raise

    return cast("Function", whole)


class _Before:
    """A model and the process as they were."""

    def __init__(self, model: nn.Module) -> None:
        self.records = [ModuleRecord(module) for module in model.modules()]
        self.classes = [(module, module.__class__) for module in model.modules()]
        self.gradients = [(parameter, parameter.grad) for parameter in _own(model)]
        self.values = tensor_values(self.records, buffers=True)
        self.call = nn.Module.__call__
        self.locks = [
            (lock, lock._is_owned())  # type: ignore[attr-defined]
            for lock in (MODULE_CALLS, FUSED_KERNELS.lock)
        ]
        self.function_modes = _function_modes()
        self.dispatch_modes = len(_get_current_dispatch_mode_stack())
        self.grad = torch.is_grad_enabled()
        self.fused = FUSED_KERNELS.depth()
        self.autocast = {
            device: torch.is_autocast_enabled(device)
            for device in {"cpu", *(record.tensor.device.type for record in self.values)}
            if torch.amp.is_autocast_available(device)
        }
        self.filters = warnings.filters
        self.filtered = list(warnings.filters)
        self.random = random.getstate()
        self.torch_random = torch.get_rng_state()
        numpy = sys.modules.get("numpy")
        self.numpy_random = None if numpy is None else numpy.random.get_state()

    def put_back(self) -> None:
        while _function_modes() > self.function_modes:
            _pop_mode()  # type: ignore[no-untyped-call]
        while len(_get_current_dispatch_mode_stack()) > self.dispatch_modes:
            _pop_dispatch_mode()
        for module, kind in self.classes:
            if module.__class__ is not kind:
                module.__class__ = kind
        for record in self.records:
            record.restore()
        nn.Module.__call__ = self.call  # type: ignore[method-assign]
        for lock, owned in self.locks:
            while not owned and lock._is_owned():  # type: ignore[attr-defined]
                lock.release()
        torch.set_grad_enabled(self.grad)
        FUSED_KERNELS.leave_to(self.fused)
        for device, enabled in self.autocast.items():
            torch.set_autocast_enabled(device, enabled)
        for parameter, gradient in self.gradients:
            if parameter.grad is not gradient:
                parameter.grad = gradient
        write_back(self.values)
        warnings.filters = self.filters
        self.filters[:] = self.filtered  # type: ignore[index]
        random.setstate(self.random)
        torch.set_rng_state(self.torch_random)
        if self.numpy_random is not None:
            sys.modules["numpy"].random.set_state(self.numpy_random)


def _function_modes() -> int:
    return len(_get_current_function_mode_stack())  # type: ignore[no-untyped-call]


def _own(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if not is_lazy(parameter)]
