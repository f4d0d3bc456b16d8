"""Runs the forward of a model on shapes alone and writes down a torch.fx graph of it.

Every parameter that a forward reads is answered by a twin on the meta device, so the real model is
never computed with. Sizes, ``len``, ``ndim`` and branches on them are concrete. Whatever depends
only on real tensors that the caller gave (an edge list, coordinates) is computed for real, which
lets most data-dependent code pass. The graph is made for reading, not for running: sizes are baked
in.
"""

from __future__ import annotations

import operator
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from .example_inputs import ExampleInputs
from .meta_outputs import recurrent_output
from .model_state import frozen_model, frozen_random_state

__all__ = [
    "LEAF_NORM",
    "LEAF_OTHER",
    "LEAF_WEIGHT",
    "Recording",
    "record_graph",
    "silent_warnings",
    "tensor_names",
]

LEAF_NORM = "norm"
LEAF_WEIGHT = "weight"
LEAF_OTHER = "other"

_IN_PLACE = {"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__iand__"}
_MOVES = {"to", "cuda", "cpu", "type", "double", "float", "half", "bfloat16"}
# Answers for questions about values that are not there, where guessing is allowed.
_DATA_DEPENDENT = {"__bool__": False, "__int__": 1, "__index__": 1, "__float__": 1.0, "item": 1}
_TENSOR_GETTERS = {"T", "mT", "H", "mH", "data", "real", "imag", "grad"}


def tensor_names(model: nn.Module) -> dict[int, str]:
    """First dotted name of every parameter and buffer, by identity of the tensor."""
    names = {id(tensor): name for name, tensor in model.named_buffers()}
    names.update({id(tensor): name for name, tensor in model.named_parameters()})
    return names


class _Recorder(TorchFunctionMode):
    """Intercepts every torch function and writes the ones that touch the model into a graph."""

    def __init__(
        self, model: nn.Module, leaf: Callable[[nn.Module], str | None], guess: bool
    ) -> None:
        super().__init__()
        self.guesses = 0
        self._guess = guess
        self.graph = fx.Graph()
        self.called: list[nn.Module] = []
        self.where: list[nn.Module] = []
        self.failed: nn.Module | None = None
        self._module_names: dict[int, str] = {
            id(module): name for name, module in model.named_modules()
        }
        self._tensor_names = tensor_names(model)
        self._leaf = leaf
        self._nodes: dict[int, fx.Node] = {}
        self._twins: dict[int, Tensor] = {}
        self._twin_names: dict[int, str] = {}
        self._tainted: set[int] = set()
        self._alive: list[Any] = []
        self._in_leaf = False
        self._thread = threading.get_ident()
        first = next(iter(model.parameters()), None)
        self._device = first.device if first is not None else torch.device("cpu")
        if self._device.type == "meta":
            self._device = torch.device("cpu")

    # --- tensors ------------------------------------------------------------------------------

    def owns(self, module: nn.Module) -> bool:
        """Whether the call of a module belongs to the recording."""
        return id(module) in self._module_names and threading.get_ident() == self._thread

    def name_of(self, module: nn.Module) -> str:
        """First dotted name of a module."""
        name: str = self._module_names[id(module)]
        return name

    def state(self, tensor: Tensor) -> Tensor:
        """What a forward sees in place of a parameter or buffer."""
        if id(tensor) not in self._tensor_names:
            return tensor
        twin = self._twins.get(id(tensor))
        if twin is None:
            # Integer buffers hold indices and counters that code may branch on: keep their values.
            keep = not (tensor.is_floating_point() or tensor.is_complex()) and not tensor.is_meta
            twin = tensor.detach().clone() if keep else _meta_twin(tensor)
            self._remember(tensor, twin)
        return twin

    def _remember(self, tensor: Tensor, twin: Tensor) -> None:
        self._twins[id(tensor)] = twin
        self._alive += (tensor, twin)
        name = self._tensor_names.get(id(tensor))
        if name is not None and twin.is_meta:
            self._twin_names[id(twin)] = name

    def _is_traced(self, tensor: Tensor) -> bool:
        key = id(tensor)
        return (
            tensor.is_meta
            or key in self._nodes
            or key in self._tainted
            or (key in self._tensor_names and tensor.is_floating_point())
        )

    def _as_meta(self, tensor: Tensor) -> Tensor:
        if tensor.is_meta:
            name = self._tensor_names.get(id(tensor))
            return tensor if name is None else self.state(tensor)
        twin = self._twins.get(id(tensor))
        if twin is None or not twin.is_meta:
            twin = _meta_twin(tensor)
            self._remember(tensor, twin)
        return twin

    def _node_of(self, tensor: Tensor) -> fx.Node:
        """Node of a tensor, real or meta; a constant where it has none yet."""
        meta = self._as_meta(tensor)
        node = self._nodes.get(id(meta))
        if node is None:
            name = self._twin_names.get(id(meta))
            node = self.graph.create_node("get_attr", name or f"_constant_{len(self._nodes)}")
            node.meta["constant"] = name is None
            self._register(meta, node)
        return node

    def _register(self, meta: Tensor, node: fx.Node) -> None:
        node.meta["shape"] = tuple(meta.shape)
        self._nodes[id(meta)] = node
        self._alive.append(meta)

    def add_input(self, name: str, tensor: Tensor) -> None:
        """Declare a tensor as an input of the model."""
        self._register(self._as_meta(tensor), self.graph.placeholder(name))

    def _register_output(self, output: Any, node: fx.Node) -> None:
        if isinstance(output, Tensor):
            self._register(output, node)
        elif isinstance(output, (tuple, list)):
            for index, item in enumerate(output):
                if isinstance(item, (Tensor, tuple, list)):
                    part = self.graph.call_function(operator.getitem, (node, index))
                    self._register_output(item, part)
        elif isinstance(output, Mapping):
            for key, item in output.items():
                if isinstance(item, (Tensor, tuple, list)):
                    part = self.graph.call_function(operator.getitem, (node, key))
                    self._register_output(item, part)

    def _argument(self, value: Any) -> Any:
        """The same value with nodes in place of tensors."""
        return _map_tensors(value, self._node_of)

    def _to_meta(self, value: Any) -> Any:
        """The same value with meta tensors and the meta device."""
        if isinstance(value, torch.device):
            return torch.device("meta")
        return _map_tensors(value, self._as_meta)

    # --- functions ----------------------------------------------------------------------------

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if threading.get_ident() != self._thread:
            return func(*args, **kwargs)
        if name in ("__get__", "__set__"):
            attribute = getattr(getattr(func, "__self__", None), "__name__", "")
            if name == "__get__" and attribute not in _TENSOR_GETTERS:
                return self._read_property(func, attribute, args)
            if not attribute:
                return func(*args, **kwargs)
            name = attribute
        tensors = list(_tensors_in((args, kwargs)))
        if not any(self._is_traced(tensor) for tensor in tensors):
            return func(*args, **kwargs)
        if self._guess and name in _DATA_DEPENDENT:
            self.guesses += 1
            return _DATA_DEPENDENT[name]
        return self._record(func, name, args, kwargs)

    def _read_property(self, func: Callable[..., Any], name: str, args: tuple[Any, ...]) -> Any:
        tensor = args[0] if args else None
        if isinstance(tensor, Tensor) and tensor.is_meta:
            if name == "device":
                return self._device
            if name == "is_cuda":
                return self._device.type == "cuda"
            if name == "is_meta":
                return False
        return func(*args)

    def _record(
        self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        in_place = (name.endswith("_") and not name.endswith("__")) or name in _IN_PLACE
        fx_args, fx_kwargs = self._argument(args), self._argument(kwargs)
        output = self._run(func, name, args, kwargs)
        if not in_place and not _holds_tensor(output):
            return output
        node = self.graph.call_function(func, fx_args, fx_kwargs)
        node.meta["module"] = self.name_of(self.where[-1]) if self.where else ""
        self._register_output(output, node)
        if in_place and args and isinstance(args[0], Tensor):
            # What was written into is from here on the result of the writing.
            self._register(self._as_meta(args[0]), node)
            if not args[0].is_meta:
                self._tainted.add(id(args[0]))
                return args[0] if isinstance(output, Tensor) else output
        return output

    def _run(
        self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        meta_args, meta_kwargs = self._to_meta(args), self._to_meta(kwargs)
        if isinstance(meta_kwargs.get("device"), (str, int)):
            meta_kwargs["device"] = "meta"
        if name in _MOVES:
            return _moved(func, name, meta_args, meta_kwargs)
        try:
            return func(*meta_args, **meta_kwargs)
        except (RuntimeError, NotImplementedError):
            # A mask or an index with real values may decide a shape: give it to the kernel as is.
            real = _map_tensors(args, lambda t: t if self._is_real_index(t) else self._as_meta(t))
            if not any(self._is_real_index(tensor) for tensor in _tensors_in(args)):
                raise
            return func(*real, **meta_kwargs)

    def _is_real_index(self, tensor: Tensor) -> bool:
        return not tensor.is_meta and not tensor.is_floating_point()

    # --- modules ------------------------------------------------------------------------------

    def attribute(self, module: nn.Module, value: Any) -> Any:
        """What ``module.name`` gives while recording."""
        if isinstance(value, Tensor) and self.owns(module):
            with torch._C.DisableTorchFunction():
                return self.state(value)
        return value

    def call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one module of the model."""
        if self._in_leaf:
            return module.forward(*args, **kwargs)
        self.called.append(module)
        self.where.append(module)
        try:
            kind = self._leaf(module)
            if kind is not None:
                with torch._C.DisableTorchFunction():
                    return self._call_leaf(module, kind, args, kwargs)
            output = module.forward(*args, **kwargs)
            with torch._C.DisableTorchFunction():
                self._close_gap(module, args, kwargs, output)
            return output
        except Exception:
            self.failed = self.failed or module
            raise
        finally:
            self.where.pop()

    def _close_gap(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """Where compiled code hid how an output came about, the whole module is the step."""
        hidden = [t for t in _tensors_in(output) if t.is_meta and id(t) not in self._nodes]
        if hidden:
            node = self.graph.call_module(
                self.name_of(module), self._argument(args), self._argument(kwargs)
            )
            for tensor in hidden:
                self._register(tensor, node)

    def _call_leaf(
        self, module: nn.Module, kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        fx_args, fx_kwargs = self._argument(args), self._argument(kwargs)
        meta_args, meta_kwargs = self._to_meta(args), self._to_meta(kwargs)
        first = next(_tensors_in((meta_args, meta_kwargs)), None)
        if kind == LEAF_NORM and first is not None:
            output: Any = torch.empty_like(first)
        elif isinstance(module, nn.RNNBase) and first is not None and first is meta_args[0]:
            output = recurrent_output(module, first)
        else:
            self._in_leaf = True
            try:
                output = module.forward(*meta_args, **meta_kwargs)
            finally:
                self._in_leaf = False
        node = self.graph.call_module(self.name_of(module), fx_args, fx_kwargs)
        node.meta["kind"] = kind
        self._register_output(output, node)
        return output


def _meta_twin(tensor: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():
        if nn.parameter.is_lazy(tensor):
            return tensor
        try:
            twin = torch.empty_strided(
                tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta"
            )
        except (RuntimeError, NotImplementedError):
            twin = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(twin, requires_grad=tensor.requires_grad)
        return twin


def _moved(
    func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """``x.to(...)`` and its like without leaving the meta device: the type only, or a copy."""
    tensor, rest = args[0], list(args[1:]) + list(kwargs.values())
    dtype = next((value for value in rest if isinstance(value, torch.dtype)), None)
    if dtype is None:
        dtype = next((value.dtype for value in rest if isinstance(value, Tensor)), None)
    if name in ("double", "float", "half", "bfloat16"):
        return func(*args, **kwargs)
    return tensor.to(dtype) if dtype is not None else tensor.view_as(tensor)


def _map_tensors(value: Any, change: Callable[[Tensor], Any]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if type(value) in (tuple, list, torch.Size):
        kind = list if type(value) is list else tuple
        return kind(_map_tensors(item, change) for item in value)
    if type(value) is dict:
        return {key: _map_tensors(item, change) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(
            _map_tensors(value.start, change),
            _map_tensors(value.stop, change),
            _map_tensors(value.step, change),
        )
    return value


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors_in(item)


def _holds_tensor(value: Any) -> bool:
    return next(_tensors_in(value), None) is not None


def _call_with_hooks(
    recorder: _Recorder, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
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
def _patched(recorder: _Recorder, hooks: bool) -> Iterator[None]:
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


@contextmanager
def silent_warnings() -> Iterator[None]:
    """Keep warnings to ourselves while a model runs without its user having asked for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


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
    recorder = _Recorder(model, leaf, guess)
    failure: Exception | None = None
    with frozen_model(model), frozen_random_state(), torch.no_grad(), silent_warnings():
        for module in model.modules():
            vars(module)["training"] = training
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
