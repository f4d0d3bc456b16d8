"""Read a model by plain symbolic tracing, for when no input shape is known.

Nothing is known about shapes then, so whatever needs one stops the tracer. The module in which it
stopped becomes one opaque step, and the tracer starts again; what lies inside an opaque module is
traced on its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn

from passportize.tracing.record import Recording
from passportize.utils.foreign import timm_exclusions
from passportize.utils.frozen import (
    MODULE_CALLS,
    eager_mode,
    frozen_model,
    frozen_random_state,
    silent_warnings,
)

__all__ = ["trace_leaves"]

# A model that stops the tracer in more kinds of modules than this is not worth more attempts.
_ATTEMPTS = 40


class _LeafTracer(fx.Tracer):
    """Symbolic tracer with chosen leaves that notes where it is."""

    proxy_buffer_attributes = True

    def __init__(
        self,
        leaf: Callable[[nn.Module], str | None],
        opaque: set[type],
        functions: tuple[Callable[..., Any], ...],
    ) -> None:
        super().__init__(autowrap_functions=functions)
        self._leaf = leaf
        self._opaque = opaque
        self.stack: list[nn.Module] = []
        self.called: list[nn.Module] = []
        self.failed: list[nn.Module] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Norms, weight modules, plain modules of torch, and what could not be traced."""
        if self._leaf(m) is not None or type(m) in self._opaque:
            return True
        inside = any(self._leaf(child) is not None for child in m.modules())
        return not inside and super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Note the module, and remember the innermost one that fails."""
        self.called.append(m)
        try:
            result = super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed.append(m)
            raise
        if isinstance(result, fx.Proxy) and result.node.op == "call_module":
            # The innermost call comes first; what encloses it returns the same node.
            result.node.meta.setdefault("kind", self._leaf(m) or "other")
        return result


def trace_leaves(
    model: nn.Module, leaf: Callable[[nn.Module], str | None], training: bool = False
) -> tuple[list[Recording], bool]:
    """Trace a model, and on their own the modules that can't be traced within it.

    Args:
        model: The model; it is left exactly as it was.
        leaf: See :func:`passportize.tracing.recorder.record_graph`.
        training: The training flag that every module shows meanwhile.

    Returns:
        The graphs, that of the whole model first if it could be traced; and whether every module
        that runs is in one of them.
    """
    names = {id(module): name for name, module in model.named_modules()}
    opaque_names, functions = timm_exclusions()
    opaque = {type(module) for module in model.modules() if type(module) in opaque_names}
    recordings: list[Recording] = []
    complete = True
    waiting, done = [model], {id(model)}
    with (
        MODULE_CALLS,
        frozen_model(model),
        frozen_random_state(),
        torch.no_grad(),
        silent_warnings(),
        eager_mode(),
    ):
        for module in model.modules():
            vars(module)["training"] = training
        while waiting:
            root = waiting.pop(0)
            recording, left_out = _trace_root(root, leaf, opaque, functions, names)
            recordings.append(recording)
            complete = complete and recording.failure is None and not left_out
            for module in left_out:
                if id(module) not in done:
                    done.add(id(module))
                    waiting.append(module)
    return [recording for recording in recordings if len(recording.graph.nodes)], complete


def _trace_root(
    root: nn.Module,
    leaf: Callable[[nn.Module], str | None],
    opaque: set[type],
    functions: tuple[Callable[..., Any], ...],
    names: dict[int, str],
) -> tuple[Recording, list[nn.Module]]:
    """Trace one module as a root; also gives the modules with steps inside that stay closed."""
    failure: Exception | None = None
    tracer = _LeafTracer(leaf, opaque, functions)
    for _ in range(_ATTEMPTS):
        tracer = _LeafTracer(leaf, opaque - {type(root)}, functions)
        try:
            graph = tracer.trace(root, concrete_args=_defaults(root))
        except Exception as error:
            failure = error
            stopped = next((m for m in tracer.failed if m is not root), None)
            if stopped is None or type(stopped) in opaque:
                break
            opaque.add(type(stopped))
            continue
        prefix = names[id(root)]
        for node in graph.nodes:
            if node.op in ("call_module", "get_attr") and prefix:
                node.target = f"{prefix}.{node.target}"
        called = {names[id(module)] for module in tracer.called if id(module) in names}
        closed = [m for m in tracer.called if type(m) in opaque and _holds_steps(m, leaf)]
        return Recording(graph, called), closed
    inside = [child for child in root.children() if _holds_steps(child, leaf)]
    inside = [child for child in _callable_parts(inside) if leaf(child) is None]
    return Recording(fx.Graph(), set(), failure, names[id(root)]), inside


def _callable_parts(modules: list[nn.Module]) -> Iterator[nn.Module]:
    """Lists and dictionaries of modules have no forward: look at what they hold."""
    for module in modules:
        if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            yield from _callable_parts(list(module.children()))
        else:
            yield module


def _holds_steps(module: nn.Module, leaf: Callable[[nn.Module], str | None]) -> bool:
    return any(leaf(child) is not None for child in module.modules())


def _defaults(module: nn.Module) -> dict[str, Any]:
    """Optional arguments of a forward, frozen to their defaults."""
    parameters = inspect.signature(module.forward).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
