"""Layers cut in two: the same network, deeper, and no architecture fits any more.

A linear layer or convolution becomes two without a step between them, whose product it is: a random
invertible matrix stands in one of them and its inverse in the other, and the kernel goes to one of
both. A BatchNorm in evaluation becomes a 1x1 depthwise convolution, and layers that do nothing are
put in behind activations. It takes no data.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from passportize.alignment.linear_maps import as_convolution
from passportize.alignment.spaces import MatrixKind
from passportize.attacks.attack import Attacked, Means, register_attack
from passportize.attacks.descent import example_of
from passportize.attacks.disguise import random_element
from passportize.errors import InvalidArgument
from passportize.surgery.norms import find_norms
from passportize.tracing.linear_chains import is_frozen_norm, is_linear_layer
from passportize.tracing.trace import trace_model
from passportize.tracing.unchanged import FunctionCheck

__all__ = ["WAYS", "cut_layers", "put_modules"]

WAYS = ("layers", "norms", "identities")
_POINTWISE: dict[int, Any] = {0: nn.Linear, 1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Hardswish)


@torch.no_grad()
def cut_layers(
    model: nn.Module,
    generator: torch.Generator | None = None,
    *,
    way: str = "layers",
    share: float = 1.0,
    condition: float = 10.0,
    example_inputs: Any = None,
) -> list[str]:
    """Make two layers of one wherever that changes no output, in place.

    Args:
        model: A plain model, in evaluation mode; its modules are replaced.
        generator: Source of all that is drawn, on the CPU.
        way: ``"layers"`` cuts linear layers and convolutions; ``"norms"`` makes BatchNorms 1x1
            depthwise convolutions; ``"identities"`` puts 1x1 layers that do nothing behind
            activations that are modules.
        share: Of the layers that could be changed, how many are.
        condition: Largest over smallest singular value of the matrices that are put in.
        example_inputs: As in :func:`passportize.plan`.

    Returns:
        Names of the modules that were replaced; what changes an output on the example is put back.

    Raises:
        InvalidArgument: An argument is out of range.
        TracingError: ``way="identities"``, and the model cannot be read.
    """
    if way not in WAYS or not 0 < share <= 1 or not condition >= 1:
        raise InvalidArgument(
            f"cut-layers: way={way!r} must be one of {', '.join(WAYS)}, share={share!r} lie in "
            f"(0, 1], and condition={condition!r} be at least 1"
        )
    if way == "identities":
        changes = _identities(model, example_inputs)
    else:
        changes = {}
        for name, module in model.named_modules():
            if not name:
                continue  # a model that is one layer
            if way == "layers" and is_linear_layer(module):
                changes[name] = _cut(module, generator, condition)
            elif way == "norms" and is_frozen_norm(module):
                # Some norms hold the activation that follows.
                changes[name] = nn.Sequential(as_convolution(module), *module.children())
    chosen = torch.rand(len(changes), generator=generator) < share
    picked = {name: changes[name] for name, taken in zip(changes, chosen, strict=True) if taken}
    return put_modules(model, picked, FunctionCheck(model, example_inputs))


def put_modules(
    model: nn.Module, changes: Mapping[str, nn.Module], check: FunctionCheck
) -> list[str]:
    """Replace modules, in place; all at once if no output changes, else those that change none.

    Args:
        model: The model.
        changes: New modules by the names of those that they replace.
        check: Made of the model as it was.

    Returns:
        Names of those that were replaced.
    """

    def put(some: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        before = {name: model.get_submodule(name) for name in some}
        for name, module in some.items():
            model.set_submodule(name, module)
        return before

    before = put(changes)
    if not check.changed(model):
        return list(changes)
    put(before)
    done = []
    for name, module in changes.items():
        put({name: module})
        if check.changed(model):
            put({name: before[name]})
        else:
            done.append(name)
    return done


def _pointwise(like: nn.Module, matrices: Tensor) -> nn.Module:
    """A layer without a kernel beside another: one matrix ``[n, n]`` for each group of channels."""
    groups, size = matrices.shape[:2]
    own: Any = like
    dimensions = len(getattr(own, "kernel_size", ()))
    wanted: dict[str, Any] = {"bias": False, "device": own.weight.device, "dtype": own.weight.dtype}
    if dimensions:
        wanted |= {"kernel_size": 1, "groups": groups}
    # No numbers are drawn for values that are written over.
    layer: nn.Module = nn.utils.skip_init(  # type: ignore[no-untyped-call]
        _POINTWISE[dimensions], groups * size, groups * size, **wanted
    )
    weight: Any = layer.weight
    weight.copy_(matrices.reshape(weight.shape))
    return layer.train(like.training)


def _cut(module: nn.Module, generator: torch.Generator | None, condition: float) -> nn.Module:
    own: Any = module
    groups = int(getattr(own, "groups", 1))
    weight = own.weight.detach().double().cpu()
    front = bool(torch.rand((), generator=generator) < 0.5)
    size = (weight.shape[0] // groups) if front else weight.shape[1]
    matrices = torch.stack(
        [
            random_element(MatrixKind.LINEAR, size, generator, condition) * (1 + number % 2)
            for number in range(groups)
        ]
    )
    inverses = torch.linalg.inv(matrices)
    main: Any = copy.deepcopy(module)
    if front:
        main.weight.copy_((inverses @ weight.reshape(groups, size, -1)).reshape(weight.shape))
        if main.bias is not None:
            bias = main.bias.double().cpu().reshape(groups, size, 1)
            main.bias.copy_((inverses @ bias).reshape(-1))
        return nn.Sequential(main, _pointwise(module, matrices))
    parts = weight.reshape(groups, -1, size, weight[0, 0].numel())
    parts = torch.einsum("gomk,gmi->goik", parts, inverses)
    main.weight.copy_(parts.reshape(weight.shape))
    return nn.Sequential(_pointwise(module, matrices), main)


def _identities(model: nn.Module, example_inputs: Any) -> dict[str, nn.Module]:
    """Activations of a model, each with a layer behind it that does nothing."""
    norms = [norm.name for norm in find_norms(model)]
    trace = trace_model(model, example_inputs, norms=norms, training=False)
    modules = dict(model.named_modules())
    like = next(model.parameters())
    found: dict[str, nn.Module] = {}
    for node in trace.recordings[0].graph.nodes if trace.method == "fx-meta" else ():
        name, shape = str(node.meta.get("module", "")), node.meta.get("shape")
        if not isinstance(modules.get(name), _ACTIVATIONS) or not isinstance(shape, tuple):
            continue
        images = len(shape) == 4
        channels = shape[1] if images else shape[-1]
        template: Any = nn.utils.skip_init(  # type: ignore[no-untyped-call]
            *((nn.Conv2d, 1, 1, 1) if images else (nn.Linear, 1, 1)),
            device=like.device,
            dtype=like.dtype,
        )
        identity = _pointwise(template, torch.eye(channels)[None])
        found[name] = nn.Sequential(copy.deepcopy(modules[name]), identity)
    return found


@register_attack(
    "cut-layers",
    kind="removal",
    source="structural obfuscation of public models; this library",
    expected="hides every mark whose verification wants the released layers; multiplied out again "
    "with the released model",
)
def _attack(
    model: nn.Module,
    means: Means,
    *,
    way: str = "layers",
    share: float = 1.0,
    condition: float = 10.0,
) -> Attacked:
    """Layers cut in two, norms made convolutions, layers put in that do nothing."""
    done = cut_layers(
        model,
        torch.Generator().manual_seed(means.seed),
        way=way,
        share=share,
        condition=condition,
        example_inputs=example_of(model, means),
    )
    if not done:
        raise InvalidArgument(
            f"cut-layers: {type(model).__name__} has nothing that way={way!r} could change"
        )
    return Attacked(figures={"layers changed": len(done)})
