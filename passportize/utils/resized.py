"""Tensors of another size in a live model, and its layers told of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from passportize.utils.frozen import copy_to_run

__all__ = ["of_widths", "put_tensor", "tensor_of"]


def of_widths(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a model in which tensors of another size than its own are put.

    Args:
        model: The model; it is only read.
        tensors: By its names.

    Raises:
        InvalidArgument: The model cannot be copied.
    """
    twin = copy_to_run(model)
    made: dict[int, Tensor] = {}
    for name, own in model.state_dict().items():
        if name in tensors and own.shape != tensors[name].shape:
            # What has several names keeps them.
            shared = id(tensor_of(model, name))
            if shared not in made:
                put_tensor(twin, name, tensors[name].detach().to(own.dtype, copy=True))
                made[shared] = tensor_of(twin, name)
            else:
                put_tensor(twin, name, made[shared])
    return twin


def tensor_of(model: nn.Module, name: str) -> Tensor:
    """The parameter or buffer of a name.

    Raises:
        KeyError: There is none.
    """
    path, _, key = name.rpartition(".")
    owner = model.get_submodule(path)
    tensors: Mapping[str, Tensor | None] = {**owner._buffers, **owner._parameters}
    tensor = tensors[key]
    if tensor is None:
        raise KeyError(name)
    return tensor


def put_tensor(model: nn.Module, name: str, values: Tensor) -> None:
    """Put a tensor in the place of a parameter or buffer, whatever its size, in place.

    Convolutions, linear layers and norms take note of their new width.
    """
    path, _, key = name.rpartition(".")
    owner: Any = model.get_submodule(path)
    if key in owner._buffers:
        owner._buffers[key] = values
    elif isinstance(values, nn.Parameter):
        owner._parameters[key] = values
    else:
        trains = owner._parameters[key].requires_grad
        owner._parameters[key] = nn.Parameter(values, requires_grad=trains)
    if key == "weight":
        _note_width(owner, values)
    elif key == "running_mean":
        owner.num_features = values.shape[0]


def _note_width(owner: Any, weight: Tensor) -> None:
    if isinstance(owner, nn.Linear):
        owner.out_features, owner.in_features = weight.shape
    elif isinstance(owner, nn.modules.conv._ConvNd):
        made, read = (1, 0) if owner.transposed else (0, 1)
        if owner.groups > 1 and owner.groups == owner.in_channels and not owner.transposed:
            # A group for each channel, however many there are.
            owner.groups = weight.shape[0] * owner.in_channels // owner.out_channels
        owner.out_channels, owner.in_channels = weight.shape[made], weight.shape[read]
        owner.out_channels *= owner.groups if owner.transposed else 1
        owner.in_channels *= 1 if owner.transposed else owner.groups
    elif isinstance(owner, nn.modules.batchnorm._BatchNorm):
        owner.num_features = weight.shape[0]
    elif isinstance(owner, (nn.LayerNorm, nn.RMSNorm)):
        owner.normalized_shape = tuple(weight.shape)
