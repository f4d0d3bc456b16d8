"""Run the forward of a model on shapes alone and write down a torch.fx graph of it.

Every parameter that a forward reads is answered by a twin on the meta device, so the real model is
never computed with. Sizes, ``len``, ``ndim`` and branches on them are concrete. Whatever depends
only on real tensors that the caller gave (an edge list, coordinates) is computed for real, which
lets most data-dependent code pass. The graph is made for reading, not for running: sizes are baked
in.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from passportize.tracing.meta_kernels import leaf_output, moved_output, quick_output
from passportize.tracing.twins import MetaTwins
from passportize.utils.trees import holds_tensor, map_tensors, tensors_in

__all__ = ["LEAF_NORM", "LEAF_OTHER", "LEAF_WEIGHT", "MetaRecorder"]

LEAF_NORM = "norm"
LEAF_WEIGHT = "weight"
LEAF_OTHER = "other"

_IN_PLACE = {"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__iand__"}
_MOVES = {"to", "cuda", "cpu", "type", "double", "float", "half", "bfloat16"}
# Answers for questions about values that are not there, where guessing is allowed.
_DATA_DEPENDENT = {"__bool__": False, "__int__": 1, "__index__": 1, "__float__": 1.0, "item": 1}
_TENSOR_GETTERS = {"T", "mT", "H", "mH", "data", "real", "imag", "grad"}


class MetaRecorder(TorchFunctionMode):
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
        self._twins = MetaTwins(model)
        self._leaf = leaf
        self._nodes: dict[int, fx.Node] = {}
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

    def _node_of(self, tensor: Tensor) -> fx.Node:
        """Node of a tensor, real or meta; a constant where it has none yet."""
        meta = self._twins.of(tensor)
        node = self._nodes.get(id(meta))
        if node is None:
            name = self._twins.name_of(meta)
            node = self.graph.create_node("get_attr", name or f"_constant_{len(self._nodes)}")
            node.meta["constant"] = name is None
            if name is None and not tensor.is_meta:
                node.meta["value"] = tensor
            self._register(meta, node)
        return node

    def _register(self, meta: Tensor, node: fx.Node) -> None:
        node.meta["shape"] = tuple(meta.shape)
        node.meta["floating"] = meta.is_floating_point() or meta.is_complex()
        self._nodes[id(meta)] = node
        self._twins.keep(meta)

    def add_input(self, name: str, tensor: Tensor) -> None:
        """Declare a tensor as an input of the model."""
        self._register(self._twins.of(tensor), self.graph.placeholder(name))

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
        return map_tensors(self._node_of, value)

    def _to_meta(self, value: Any) -> Any:
        """The same value with meta tensors and the meta device."""
        if isinstance(value, torch.device):
            return torch.device("meta")
        return map_tensors(self._twins.of, value)

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
        tensors = list(tensors_in((args, kwargs)))
        if not any(self._twins.is_traced(tensor) for tensor in tensors):
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
        if not in_place and not holds_tensor(output):
            return output
        node = self.graph.call_function(func, fx_args, fx_kwargs)
        node.meta["module"] = self.name_of(self.where[-1]) if self.where else ""
        self._register_output(output, node)
        if in_place and args and isinstance(args[0], Tensor):
            # What was written into is from here on the result of the writing.
            self._register(self._twins.of(args[0]), node)
            if not args[0].is_meta:
                self._twins.taint(args[0])
                return args[0] if isinstance(output, Tensor) else output
        return output

    def _run(
        self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        meta_args, meta_kwargs = self._to_meta(args), self._to_meta(kwargs)
        if isinstance(meta_kwargs.get("device"), (str, int)):
            meta_kwargs["device"] = "meta"
        if name in _MOVES:
            return moved_output(func, name, meta_args, meta_kwargs)
        quick = quick_output(name, meta_args, meta_kwargs)
        if quick is not None:
            return quick
        try:
            return func(*meta_args, **meta_kwargs)
        except (RuntimeError, NotImplementedError):
            # A mask or an index with real values may decide a shape: give it to the kernel as is.
            real = map_tensors(lambda t: t if self._is_real_index(t) else self._twins.of(t), args)
            if not any(self._is_real_index(tensor) for tensor in tensors_in(args)):
                raise
            return func(*real, **meta_kwargs)

    def _is_real_index(self, tensor: Tensor) -> bool:
        return not tensor.is_meta and not tensor.is_floating_point()

    # --- modules ------------------------------------------------------------------------------

    def attribute(self, module: nn.Module, value: Any) -> Any:
        """What ``module.name`` gives while recording."""
        if isinstance(value, Tensor) and self.owns(module):
            with torch._C.DisableTorchFunction():
                return self._twins.state(value)
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
        hidden = [t for t in tensors_in(output) if t.is_meta and id(t) not in self._nodes]
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
        first = next(tensors_in((meta_args, meta_kwargs)), None)
        self._in_leaf = True
        try:
            output = leaf_output(module, kind, first, meta_args, meta_kwargs)
        finally:
            self._in_leaf = False
        node = self.graph.call_module(self.name_of(module), fx_args, fx_kwargs)
        node.meta["kind"] = kind
        self._register_output(output, node)
        return output
