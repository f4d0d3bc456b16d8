"""Linear layers in a row multiplied into one: the same network, less deep.

Where nothing happens between two layers but a BatchNorm in evaluation (linear bottlenecks without a
skip, low-rank pairs, separable convolutions), their product is a layer that does the same. It takes
no data.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from passportize.alignment.linear_maps import layer_of, map_of, product, stepping
from passportize.attacks.attack import Attacked, Means, register_attack
from passportize.attacks.cut_layers import put_modules
from passportize.attacks.descent import example_of
from passportize.errors import InvalidArgument
from passportize.surgery.norms import find_norms
from passportize.tracing.linear_chains import Chain, is_linear_layer, units_of
from passportize.tracing.trace import trace_model
from passportize.tracing.unchanged import FunctionCheck

__all__ = ["multiply_layers"]


@torch.no_grad()
def multiply_layers(model: nn.Module, example_inputs: Any = None) -> list[str]:
    """Multiply all linear layers that follow each other directly, in place.

    Args:
        model: A plain model, in evaluation mode; its modules are replaced.
        example_inputs: As in :func:`passportize.plan`.

    Returns:
        Names of the layers that are part of another one now; what changes an output on the example
        is put back.

    Raises:
        TracingError: The model cannot be read.
    """
    norms = [norm.name for norm in find_norms(model)]
    trace = trace_model(model, example_inputs, norms=norms, training=False)
    check = FunctionCheck(model, example_inputs)
    gone: list[str] = []
    for recording in trace.recordings[:1]:
        for unit in units_of(model, recording.graph):
            if isinstance(unit, Chain):
                gone += _multiplied(model, list(unit.modules), check)
    return gone


def _multiplied(model: nn.Module, names: list[str], check: FunctionCheck) -> list[str]:
    """Runs of a chain that hold several layers, each as one layer; names of those that are gone."""
    gone: list[str] = []
    start = 0
    while start < len(names):
        for end in range(len(names), start + 1, -1):
            run = names[start:end]
            modules = {name: model.get_submodule(name) for name in run}
            layers = [name for name in run if is_linear_layer(modules[name])]
            if len(layers) < 2:
                continue
            whole = product([map_of(module) for module in modules.values()])
            if whole is None:
                continue
            main = layers[stepping([modules[name] for name in layers])]
            changes: dict[str, nn.Module] = {name: nn.Identity() for name in run}
            changes[main] = layer_of(modules[main], whole)
            if _all_or_none(model, changes, check):
                gone += [name for name in layers if name != main]
                start = end - 1
                break
        start += 1
    return gone


def _all_or_none(model: nn.Module, changes: dict[str, nn.Module], check: FunctionCheck) -> bool:
    before = {name: model.get_submodule(name) for name in changes}
    if len(put_modules(model, changes, check)) == len(changes):
        return True
    for name, module in before.items():
        model.set_submodule(name, module)
    return False


@register_attack(
    "multiply-layers",
    kind="removal",
    source="structural re-parametrization as in RepVGG, CVPR 2021; this library",
    expected="hides marks in the layers that were multiplied; of these only products are known",
)
def _attack(model: nn.Module, means: Means) -> Attacked:
    """Linear layers in a row multiplied into one."""
    gone = multiply_layers(model, example_of(model, means))
    if not gone:
        raise InvalidArgument(
            f"multiply-layers: in {type(model).__name__} no two linear layers follow each other"
        )
    return Attacked(figures={"layers gone": len(gone)})
