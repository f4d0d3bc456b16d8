"""Norms that are no modules: ``F.layer_norm(x, shape, self.scale, self.shift)`` in a forward.

The graph says which calls normalise with parameters of the model. For each a stand-in module takes
its place while the model is passportized: the module in whose forward the call is gets a class
whose forward hands such calls to the stand-ins. From there on a stand-in is a norm like any other.
The stand-in owns nothing, so the host's keys stay; taking it out restores the model exactly.

A part of a forward that activation checkpointing repeats on its own is repeated without stand-ins;
checkpoint whole modules instead.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from passportize.made_on_demand import MadeOnDemand, make_class
from passportize.tracing import trace_model

__all__ = ["FUNCTIONS", "FunctionalNorm", "arguments_of", "expose", "hide", "stand_ins"]

FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "batch_norm": F.batch_norm,
    "layer_norm": F.layer_norm,
    "group_norm": F.group_norm,
    "instance_norm": F.instance_norm,
    "rms_norm": F.rms_norm,
}
_TENSORS = ("weight", "bias", "running_mean", "running_var")
_PREFIX = "functional_"


class _Place:
    """A tensor by the module that owns it and its name there, without owning the module."""

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module = module
        self.name = name

    def get(self) -> Tensor:
        tensor: Tensor = getattr(self.module, self.name)
        return tensor


class FunctionalNorm(nn.Module):
    """Stands in for one functional norm in the forward of the module that it is registered in.

    Args:
        function: Name of the function, a key of :data:`FUNCTIONS`.
        places: Where its ``weight`` and, if they are tensors of the model, its ``bias`` and
            running statistics are.
    """

    def __init__(self, function: str, places: Mapping[str, _Place]) -> None:
        super().__init__()
        self.function = function
        self.places = dict(places)

    def _tensor(self, name: str) -> Tensor | None:
        place = self.places.get(name)
        return None if place is None else place.get()

    @property
    def weight(self) -> Tensor | None:
        """The host's scale."""
        return self._tensor("weight")

    @property
    def bias(self) -> Tensor | None:
        """The host's shift."""
        return self._tensor("bias")

    @property
    def running_mean(self) -> Tensor | None:
        """The host's running mean."""
        return self._tensor("running_mean")

    @property
    def running_var(self) -> Tensor | None:
        """The host's running variance."""
        return self._tensor("running_var")

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The call as the host makes it."""
        return FUNCTIONS[self.function](*args, **kwargs)

    def extra_repr(self) -> str:
        """Function and scale."""
        return f"{self.function}, weight={self.places['weight'].name}"


@functools.cache
def _signature(function: str) -> inspect.Signature:
    return inspect.signature(FUNCTIONS[function])


def arguments_of(function: str, args: Any, kwargs: Any) -> inspect.BoundArguments:
    """Arguments of a functional norm by name."""
    return _signature(function).bind(*args, **kwargs)


class _HandOver(TorchFunctionMode):
    """Hands calls that normalise with the weight of a stand-in to it."""

    def __init__(self, stand_ins: list[FunctionalNorm]) -> None:
        super().__init__()
        self.stand_ins = stand_ins

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        for stand_in in self.stand_ins:
            if func is FUNCTIONS[stand_in.function]:
                weight = arguments_of(stand_in.function, args, kwargs).arguments.get("weight")
                if weight is not None and weight is stand_in.weight:
                    return stand_in(*args, **kwargs)
        return func(*args, **kwargs)


class Exposed(MadeOnDemand):
    """A module in whose forward functional norms are handed to their stand-ins."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The host's forward."""
        stand_ins = [
            module for module in self._modules.values() if isinstance(module, FunctionalNorm)
        ]
        with _HandOver(stand_ins):
            return super().forward(*args, **kwargs)


def expose(model: nn.Module, norms: set[str], example_inputs: Any) -> bool:
    """Give every functional norm of a model its stand-in, in place.

    Args:
        model: A plain model.
        norms: Names of its norms that are modules.
        example_inputs: As for ``plan``.

    Returns:
        Whether anything was exposed; :func:`hide` undoes it.

    Raises:
        TracingError: The model calls functional norms and could not be read.
    """
    # Convs that standardise their own weight call the same functions, and are no norms.
    kinds = {
        type(module)
        for name, module in model.named_modules()
        if name not in norms and not isinstance(module, (_ConvNd, nn.Linear))
    }
    if not any(_calls_functional_norms(kind) for kind in kinds):
        return False
    trace = trace_model(model, example_inputs, norms=norms, training=False)
    exposed = False
    try:
        for recording in trace.recordings:
            for node in recording.graph.nodes:
                exposed |= _expose_call(model, node, norms)
    except BaseException:
        hide(model)
        raise
    return exposed


@contextmanager
def stand_ins(model: nn.Module, norms: set[str], example_inputs: Any) -> Iterator[None]:
    """Expose functional norms; they stay so after the ``with`` block, unless it raises."""
    expose(model, norms, example_inputs)
    try:
        yield
    except BaseException:
        hide(model)
        raise


def hide(model: nn.Module) -> None:
    """Take all stand-ins out; nothing is left of them."""
    for module in list(model.modules()):
        if isinstance(module, Exposed):
            for name, child in list(module._modules.items()):
                if isinstance(child, FunctionalNorm):
                    del module._modules[name]
            host_class = type(module).host_class
            module.__class__ = host_class  # type: ignore[assignment]


def _calls_functional_norms(kind: type[nn.Module]) -> bool:
    """Whether the code of a class, below torch's own, names a functional norm."""
    for base in kind.__mro__:
        if base.__module__.startswith("torch.nn.") or base is nn.Module:
            return False
        for member in vars(base).values():
            code = getattr(member, "__code__", None)
            if code is not None and not set(FUNCTIONS).isdisjoint(code.co_names):
                return True
    return False


def _expose_call(model: nn.Module, node: fx.Node, norms: set[str]) -> bool:
    """Give one call in the graph its stand-in; False if it is none that can have one."""
    name = getattr(node.target, "__name__", "")
    if node.op != "call_function" or FUNCTIONS.get(name) is not node.target:
        return False
    arguments = arguments_of(name, node.args, node.kwargs).arguments
    places = {
        tensor: place
        for tensor in _TENSORS
        if (place := _place(model, arguments.get(tensor))) is not None
    }
    if "weight" not in places:
        return False
    path = str(cast(fx.Node, arguments["weight"]).target)
    caller = _caller(model, path)
    if caller is None or path.rpartition(".")[0] in norms:
        return False
    where, module = caller
    key = _PREFIX + path[len(where) :].lstrip(".").replace(".", "_")
    if key in module._modules:
        return False
    if hasattr(module, key) or (("bias" in places) != (arguments.get("bias") is not None)):
        return False
    if not isinstance(module, Exposed):
        module.__class__ = make_class(Exposed, type(module))
    stand_in = FunctionalNorm(name, places)
    stand_in.training = module.training
    module._modules[key] = stand_in
    return True


def _place(model: nn.Module, argument: Any) -> _Place | None:
    """Where a tensor argument lives in the model, if it is one of its parameters or buffers."""
    if not isinstance(argument, fx.Node) or argument.op != "get_attr":
        return None
    if argument.meta.get("constant"):
        return None
    path, _, name = str(argument.target).rpartition(".")
    module = model.get_submodule(path)
    if module._parameters.get(name) is None and module._buffers.get(name) is None:
        return None
    return _Place(module, name)


def _caller(model: nn.Module, path: str) -> tuple[str, nn.Module] | None:
    """The module that owns a parameter, or the nearest one above it, whose code calls norms."""
    for where in _upwards(path):
        module = model.get_submodule(where)
        if _calls_functional_norms(type(module)):
            return where, module
    return None


def _upwards(path: str) -> Iterator[str]:
    while path:
        path = path.rpartition(".")[0]
        yield path
