"""Take note of everything a forward pass could change in a model, and put it back."""

from __future__ import annotations

import copy
import gc
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from passportize.errors import InvalidArgument
from passportize.utils.records import ModuleRecord, tensor_values, write_back

__all__ = [
    "MODULE_CALLS",
    "close",
    "copy_to_run",
    "eager_mode",
    "frozen_model",
    "frozen_parameters",
    "frozen_random_state",
    "in_eval_mode",
    "silent_warnings",
    "trial",
]

# The call of modules is intercepted on the class that all of them share. Two threads that did so at
# once would undo each other's changes in the wrong order.
MODULE_CALLS = threading.RLock()


@contextmanager
def frozen_random_state(cuda: bool = False) -> Iterator[None]:
    """Put the random generators of Python, NumPy and torch back on leaving.

    Args:
        cuda: Also those of the CUDA devices, if CUDA is in use.
    """
    python_state = random.getstate()
    torch_state = torch.get_rng_state()
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy is not None else None
    on_cuda = cuda and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda_states = torch.cuda.get_rng_state_all() if on_cuda else None
    try:
        yield
    finally:
        random.setstate(python_state)
        torch.set_rng_state(torch_state)
        if numpy is not None:
            numpy.random.set_state(numpy_state)
        if cuda_states is not None:
            torch.cuda.set_rng_state_all(cuda_states)


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode for the length of a ``with`` block; every module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def copy_to_run(model: nn.Module) -> nn.Module:
    """A copy of a model that shares its parameters, to be run and changed in the model's stead.

    Raises:
        InvalidArgument: It cannot be copied.
    """
    memo: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    for module in model.modules():
        for value in vars(module).values():
            # What a weight norm of the old kind has computed last; it does so anew when it is run.
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach()
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise InvalidArgument(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}), and a "
            "model that somebody else may be using is never run itself; give its state dict, and "
            "a model of the same architecture as model="
        ) from None


@contextmanager
def frozen_model(model: nn.Module, values: bool = False) -> Iterator[Callable[[], None]]:
    """Put every attribute of every module back on leaving, also after an exception.

    That covers rebound buffers, training flags, cached attributes, entries that were added to
    lists and dictionaries held by a module, and plain tensor attributes changed in place. What
    other objects hold is out of reach. Yields a function that puts it back at once, as often as it
    is called.

    Args:
        model: The model.
        values: Also write back the values of buffers that were changed in place.
    """
    with paused_collection():
        records = [ModuleRecord(module) for module in model.modules()]
        saved = tensor_values(records, values)

    def put_back() -> None:
        for record in records:
            record.restore()
        write_back(saved)

    try:
        yield put_back
    finally:
        put_back()


@contextmanager
def frozen_parameters(model: nn.Module) -> Iterator[None]:
    """Put values and gradients of all parameters back on leaving; within there are no gradients.

    Forward passes may write into parameters too: an average of weights, a row kept at length one.
    """
    kept = [(item, item.data, item.detach().clone(), item.grad) for item in model.parameters()]
    try:
        for parameter, _, _, _ in kept:
            parameter.grad = None
        yield
    finally:
        with torch.no_grad():
            for parameter, data, values, gradient in kept:
                if parameter.data_ptr() != data.data_ptr() or parameter.shape != data.shape:
                    parameter.data = data
                if not torch.equal(parameter, values):
                    parameter.copy_(values)
                parameter.grad = gradient


# --- forward passes that leave nothing behind, and comparing what they give -------------------

_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}
_LOOSE = 5e-2


@contextmanager
def trial(model: nn.Module) -> Iterator[None]:
    """Forward passes within leave nothing behind: no value, hook, random draw or warning."""
    with (
        frozen_random_state(cuda=True),
        frozen_model(model, values=True),
        torch.no_grad(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def close(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors are the same up to what another order of summation explains."""
    if left.shape != right.shape:
        return False
    if not right.is_floating_point():
        return torch.equal(left, right)
    tolerance = _TOLERANCE.get(right.dtype, _LOOSE)
    scale = float(right.abs().max()) if right.numel() else 0.0
    return (
        bool((left - right).abs().max() <= tolerance * max(scale, 1e-3)) if right.numel() else True
    )


@contextmanager
def eager_mode() -> Iterator[None]:
    """Run compiled parts of a model as they were written, and leave the compiler's caches alone."""
    if "torch._dynamo" in sys.modules:
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


@contextmanager
def silent_warnings() -> Iterator[None]:
    """Keep warnings to ourselves while a model runs without its user having asked for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def paused_collection() -> Iterator[None]:
    """Put off garbage collection: thousands of nodes are made, none of them is garbage yet."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
