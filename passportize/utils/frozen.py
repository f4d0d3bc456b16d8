"""Take note of everything a forward pass could change in a model, and put it back."""

from __future__ import annotations

import gc
import random
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "MODULE_CALLS",
    "close",
    "eager_mode",
    "frozen_model",
    "frozen_random_state",
    "in_eval_mode",
    "silent_warnings",
    "trial",
]

_CONTAINERS = (dict, list, set)


# The call of modules is intercepted on the class that all of them share. Two threads that did so at
# once would undo each other's changes in the wrong order.
MODULE_CALLS = threading.RLock()


class _ModuleRecord:
    """The attributes of one module, one level into its plain containers."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.attributes = dict(vars(module))
        self.contents = [
            (value, value.copy())
            for value in self.attributes.values()
            if isinstance(value, _CONTAINERS)
        ]

    def restore(self) -> None:
        for container, content in self.contents:
            if not _same(container, content):
                _refill(container, content)
        current = vars(self.module)
        if not _same(current, self.attributes):
            current.clear()
            current.update(self.attributes)


def _same(container: Any, content: Any) -> bool:
    """Whether two containers hold the same objects in the same order, without calling ``==``."""
    if len(container) != len(content):
        return False
    if not content:
        return True
    if isinstance(container, dict):
        return all(
            a is c and b is d
            for (a, b), (c, d) in zip(container.items(), content.items(), strict=True)
        )
    if isinstance(container, list):
        return all(a is b for a, b in zip(container, content, strict=True))
    return {id(item) for item in container} == {id(item) for item in content}


def _refill(container: Any, content: Any) -> None:
    container.clear()
    if isinstance(container, list):
        container.extend(content)
    else:
        container.update(content)


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


@contextmanager
def frozen_model(model: nn.Module, values: bool = False) -> Iterator[None]:
    """Put every attribute of every module back on leaving, also after an exception.

    That covers rebound buffers, training flags, cached attributes, entries that were added to
    lists and dictionaries held by a module, and plain tensor attributes changed in place. What
    other objects hold is out of reach.

    Args:
        model: The model.
        values: Also write back the values of buffers that were changed in place.
    """
    records = [_ModuleRecord(module) for module in model.modules()]
    saved = _tensor_values(records, values)
    try:
        yield
    finally:
        for record in records:
            record.restore()
        with torch.no_grad():
            for tensor in saved:
                tensor.restore()


class _TensorRecord:
    """The shape, the strides and the values of one tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.alias = tensor.detach()  # keeps shape and strides, whatever the tensor is resized to
        self.version = tensor._version
        self.copies = [part.clone() for part in parts_of(self.alias)]

    def restore(self) -> None:
        if self.tensor.layout == torch.strided and (
            self.tensor.shape != self.alias.shape or self.tensor.stride() != self.alias.stride()
        ):
            self.tensor.set_(self.alias)  # type: ignore[call-overload]
        # Not the version alone: some batch_norm kernels update their statistics without counting
        # it.
        changed = self.tensor._version != self.version
        for part, copy in zip(parts_of(self.alias), self.copies, strict=True):
            if changed or not (part.is_meta or torch.equal(part, copy)):
                part.copy_(copy)
        if self.tensor.layout != torch.strided and changed:
            self.tensor.copy_(self.alias)


def parts_of(tensor: Tensor) -> list[Tensor]:
    """The dense tensors that a tensor is kept in: itself, or indices and values of a sparse one.

    None of a quantised one, which no forward pass changes.
    """
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return [] if tensor.is_quantized else [tensor]


def _tensor_values(records: list[_ModuleRecord], buffers: bool) -> list[_TensorRecord]:
    found: dict[int, Tensor] = {}
    for record in records:
        registered = record.attributes.get("_buffers", {}).values() if buffers else ()
        for value in (*registered, *record.attributes.values()):
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                found.setdefault(id(value), value)
    # Tensors made under inference mode have no version counter, and can't be changed in place.
    tensors = [tensor for tensor in found.values() if not tensor.is_inference()]
    return [_TensorRecord(tensor) for tensor in tensors]


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
