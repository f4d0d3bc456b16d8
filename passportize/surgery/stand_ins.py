"""Find a model's functional norms in its graph; give each its stand-in, and take it back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from passportize.layers.derived import class_before, make_class
from passportize.layers.functional_norm import (
    FUNCTIONS,
    Exposed,
    FunctionalNorm,
    Place,
    arguments_of,
)
from passportize.layers.private_keys import STAND_IN_PREFIX
from passportize.tracing.trace import trace_model

__all__ = ["put_in_stand_ins", "take_out_stand_ins", "stand_ins"]

_TENSORS = ("weight", "bias", "running_mean", "running_var")


def put_in_stand_ins(model: nn.Module, norms: set[str], example_inputs: Any) -> bool:
    """Give every functional norm of a model its stand-in, in place.

    Args:
        model: A plain model.
        norms: Names of its norms that are modules.
        example_inputs: As for ``plan``.

    Returns:
        Whether anything was exposed; :func:`take_out_stand_ins` undoes it.

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
        take_out_stand_ins(model)
        raise
    return exposed


@contextmanager
def stand_ins(model: nn.Module, norms: set[str], example_inputs: Any) -> Iterator[bool]:
    """Expose functional norms; they stay so after the ``with`` block, unless it raises.

    Yields whether there are any.
    """
    exposed = put_in_stand_ins(model, norms, example_inputs)
    try:
        yield exposed
    except BaseException:
        take_out_stand_ins(model)
        raise


def take_out_stand_ins(model: nn.Module) -> None:
    """Take all stand-ins out; nothing is left of them."""
    for module in list(model.modules()):
        if isinstance(module, Exposed):
            for name, child in list(module._modules.items()):
                if isinstance(child, FunctionalNorm):
                    del module._modules[name]
            module.__class__ = class_before(type(module))  # type: ignore[assignment]


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
    key = STAND_IN_PREFIX + path[len(where) :].lstrip(".").replace(".", "_")
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


def _place(model: nn.Module, argument: Any) -> Place | None:
    """Where a tensor argument lives in the model, if it is one of its parameters or buffers."""
    if not isinstance(argument, fx.Node) or argument.op != "get_attr":
        return None
    if argument.meta.get("constant"):
        return None
    path, _, name = str(argument.target).rpartition(".")
    module = model.get_submodule(path)
    if module._parameters.get(name) is None and module._buffers.get(name) is None:
        return None
    return Place(module, name)


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
