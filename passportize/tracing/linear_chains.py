"""Runs of linear steps in a recorded graph, between which nothing else happens.

Of two linear steps in a row only the product shows in what a network computes: a layer can be cut
in two, and two can be multiplied into one. So models of another depth are told to be of one
structure by their chains.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from passportize.tracing.graph import shape_of, step_name
from passportize.tracing.operations import Kind, Trait, steps
from passportize.tracing.weight_layers import expert_shape_of, standardises_weight

__all__ = ["Chain", "Other", "Unit", "is_frozen_norm", "is_linear_layer", "units_of"]

_NOTHING = steps(Kind.COPY) | {"dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout"}
_LEAVING = _NOTHING | steps(
    Kind.PERMUTE, Kind.RESHAPE, Kind.INDEX, Kind.SLICE, Kind.POOL, Kind.REDUCE, having=Trait.LINEAR
)
_PASSING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


@dataclass(frozen=True)
class Chain:
    """Linear steps in a row, the output of each of which only the next one reads.

    Between them may lie what moves or averages positions and leaves channels alone.

    Attributes:
        modules: Names of linear layers, convolutions and BatchNorms with running statistics, in
            their order.
    """

    modules: tuple[str, ...]


@dataclass(frozen=True)
class Other:
    """Anything else with parameters.

    Attributes:
        tensors: Their names and those of its buffers, as they are registered.
        norm: Name of the norm that it is; empty if it is none.
    """

    tensors: tuple[str, ...]
    norm: str = ""


Unit = Chain | Other


def is_linear_layer(module: nn.Module | None) -> bool:
    """Whether a module multiplies its input with the weight that it holds."""
    return (
        isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))
        and isinstance(module._parameters.get("weight"), Tensor)
        and not {"weight", "bias"}.symmetric_difference(module._parameters)
        and not standardises_weight(module)
        and not expert_shape_of(module)
    )


def is_frozen_norm(module: nn.Module | None) -> bool:
    """Whether a module is a BatchNorm that uses running statistics in evaluation."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and isinstance(
        module.running_mean, Tensor
    )


def units_of(model: nn.Module, graph: fx.Graph, shared: bool = False) -> list[Unit]:
    """Everything with parameters in a recorded graph, in the order of the forward pass.

    Args:
        model: The model that was recorded, with its norms as one step each.
        graph: Its graph.
        shared: Whether square layers without a kernel whose output several steps read are parts of
            the chains of all of these, as if each of them had its own.

    Returns:
        Chains at the place of their first step. A layer that is called more than once is no part
        of a chain, and stands where it is called first.
    """
    search = _Search(model, graph, shared)
    for step, node in enumerate(graph.nodes):
        search.read(node, step)
    return search.units()


@dataclass
class _Run:
    """A chain that may go on.

    Attributes:
        step: Its place in the graph.
        modules: Names of its steps.
        dim: Dimension of its output that counts channels.
        given: How many of its last steps its readers have.
    """

    step: int
    modules: list[str]
    dim: int
    given: int = 0


class _Search:
    """What was found in a graph so far."""

    def __init__(self, model: nn.Module, graph: fx.Graph, shared: bool) -> None:
        self._modules: Mapping[str, nn.Module] = dict(model.named_modules())
        self._shared = shared
        called = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
        held = Counter(
            id(module._parameters["weight"])
            for module in self._modules.values()
            if isinstance(module._parameters.get("weight"), Tensor)
        )
        self._once = {
            name
            for name, times in called.items()
            if times == 1 and held.get(id(self._modules[name]._parameters.get("weight")), 1) == 1
        }
        self._seen: set[str] = set()
        self._open: dict[fx.Node, _Run] = {}
        self._runs: list[_Run] = []
        self._others: list[tuple[int, Other]] = []

    def units(self) -> list[Unit]:
        """Everything, in order."""
        found: list[tuple[int, Unit]] = list(self._others)
        for run in self._runs:
            kept = run.modules[: len(run.modules) - run.given]
            if kept:
                found.append((run.step, Chain(tuple(kept))))
        return [unit for _, unit in sorted(found, key=lambda pair: pair[0])]

    def read(self, node: fx.Node, step: int) -> None:
        """One step."""
        if node.op == "get_attr":
            if not node.meta.get("constant"):
                self._note([str(node.target)], step)
            return
        source = node.args[0] if node.args else None
        before = self._before(source, step) if isinstance(source, fx.Node) else None
        for other in node.all_input_nodes:
            if other is not source:
                self._before(other, step)
        name = str(node.target)
        if node.op != "call_module":
            if before is not None and isinstance(source, fx.Node):
                dim = _dim_behind(node, source, before.dim)
                if dim is not None:
                    before.dim = dim
                    self._open[node] = before
            return
        module = self._modules[name]
        if name not in self._once or not (is_linear_layer(module) or is_frozen_norm(module)):
            prefix = f"{name}." if name else ""
            keys = [f"{prefix}{key}" for key in module.state_dict()]
            self._note(keys, step, name if node.meta.get("kind") == "norm" else "")
            return
        shape = shape_of(node) or ()
        dim = 1 if is_frozen_norm(module) else len(shape) - 1 - len(_kernel(module))
        if before is None or before.dim != dim:
            before = _Run(step, [], dim)
            self._runs.append(before)
        before.modules.append(name)
        # Some norms hold the activation that follows.
        if all(isinstance(child, _PASSING) for child in module.children()):
            self._open[node] = before

    def _before(self, source: fx.Node, step: int) -> _Run | None:
        """The chain that one reader of a step goes on with."""
        run = self._open.get(source)
        if run is None or len(source.users) == 1:
            return run
        count = 0
        while count < len(run.modules) and self._is_bare(run.modules[-1 - count]):
            count += 1
        if not self._shared or not count:
            return None
        run.given = count
        found = _Run(step, run.modules[-count:], run.dim)
        self._runs.append(found)
        return found

    def _is_bare(self, name: str) -> bool:
        module: Any = self._modules[name]
        if not is_linear_layer(module):
            return False
        outputs, inputs, *kernel = module.weight.shape
        groups = int(getattr(module, "groups", 1))
        return bool(outputs == inputs * groups) and math.prod(kernel) == 1

    def _note(self, names: list[str], step: int, norm: str = "") -> None:
        fresh = tuple(name for name in names if name not in self._seen)
        self._seen.update(fresh)
        if fresh or (norm and norm not in self._seen):
            self._seen.add(norm)
            self._others.append((step, Other(fresh, norm)))


def _kernel(module: nn.Module) -> tuple[int, ...]:
    return tuple(getattr(module, "kernel_size", ()))


def _dim_behind(node: fx.Node, source: fx.Node, dim: int) -> int | None:
    """Where the channels of a tensor lie behind a step; None unless it leaves each as it is.

    Steps that move or average positions do the same to every channel, so a linear map of channels
    can be in front of them or behind.
    """
    before, after = shape_of(source), shape_of(node)
    if before is None or after is None or step_name(node) not in _LEAVING or not after:
        return None
    if step_name(node) in _NOTHING:
        return dim
    if len(node.all_input_nodes) > 1 or not callable(node.target):
        return None
    numbers = torch.arange(before[dim], dtype=torch.float32)
    labels = numbers.view([-1 if d == dim else 1 for d in range(len(before))]).expand(before)
    try:
        found = node.target(labels, *node.args[1:], **node.kwargs)
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
        return None
    if not isinstance(found, Tensor):
        return None
    for at in range(found.dim()):
        if found.shape[at] == len(numbers):
            wanted = numbers.view([-1 if d == at else 1 for d in range(found.dim())])
            if bool(((found - wanted).abs() < 1e-3).all()):
                return at
    return None
