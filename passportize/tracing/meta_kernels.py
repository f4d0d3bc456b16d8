"""Outputs, as tensors without data, of steps that are slow or impossible on the meta device.

Kernels for the meta device decompose many functions into Python, which costs a hundred times what
it takes to say the shape of their output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from passportize.tracing.operations import CAT_STEPS, Kind, steps

__all__ = ["leaf_output", "moved_output", "quick_output"]

_POINTWISE = steps(Kind.POINTWISE, Kind.ALONG)
_NORMS = steps(Kind.NORM)
_BINARY = steps(Kind.SUM, Kind.FACTOR)


def quick_output(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Output of a function whose shape is clear; None leaves it to torch.

    Args:
        name: Name of the function.
        args: Its positional arguments, tensors without data.
        kwargs: Its keyword arguments.
    """
    if name in CAT_STEPS:
        return _joined(args, kwargs)
    if not args or not isinstance(args[0], Tensor):
        return None
    first: Tensor = args[0]
    plain, in_place = name.strip("_"), name.endswith("_") and not name.endswith("__")
    if plain in _NORMS or (plain in _POINTWISE and _is_alone(args, kwargs)):
        in_place = in_place or kwargs.get("inplace") is True
        return first if in_place else _like(first)
    if plain in _BINARY:
        second = args[1] if len(args) == 2 and not kwargs else None
        number = isinstance(second, (int, float)) and first.is_floating_point()
        if not number and not (
            isinstance(second, Tensor)
            and second.shape == first.shape
            and second.dtype == first.dtype
        ):
            return None
        return first if in_place or name.startswith("__i") else _like(first)
    rule = _SHAPES.get(name)
    return None if rule is None else rule(args, kwargs)


def _is_alone(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether shape and type of the output can only be those of the first argument."""
    others = (*args[1:], *kwargs.values())
    return args[0].is_floating_point() and not any(
        isinstance(other, (Tensor, torch.dtype)) for other in others
    )


def _like(tensor: Tensor) -> Tensor:
    """``torch.empty_like``, which is Python code for a tensor without data."""
    if not tensor.is_contiguous():
        return torch.empty_like(tensor)
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def _joined(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Tensors behind each other; None unless they fit as they are."""
    tensors = args[0] if args else kwargs.get("tensors")
    dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    if not isinstance(tensors, (list, tuple)) or not tensors or type(dim) is not int:
        return None
    if not all(isinstance(tensor, Tensor) and tensor.is_contiguous() for tensor in tensors):
        return None
    shape = list(tensors[0].shape)
    if kwargs.keys() - {"tensors", "dim"} or not -len(shape) <= dim < len(shape):
        return None
    for tensor in tensors[1:]:
        other = list(tensor.shape)
        if len(other) != len(shape) or tensor.dtype != tensors[0].dtype:
            return None
        other[dim] += shape[dim]
        shape[dim] = other[dim]
        if other != shape:
            return None
    return torch.empty(shape, dtype=tensors[0].dtype, device=tensors[0].device)


def convolution_output(module: nn.Module, source: Tensor) -> Tensor | None:
    """What one of torch's own convolutions gives; None where torch should say so itself.

    Args:
        module: Any module.
        source: ``[batch, channels, *space]``.
    """
    if not isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) or "forward" in vars(module):
        return None
    code = type(module).forward, type(module)._conv_forward
    if code not in _CONVOLUTIONS:
        return None
    weight, space = module._parameters.get("weight"), len(module.kernel_size)
    if weight is None or source.dim() != space + 2 or source.shape[1] != module.in_channels:
        return None
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        return None
    if weight.dtype != source.dtype or not (weight.is_contiguous() and source.is_contiguous()):
        return None
    sizes = [
        (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        for size, padding, dilation, kernel, stride in zip(
            source.shape[2:],
            module.padding,
            module.dilation,
            module.kernel_size,
            module.stride,
            strict=True,
        )
    ]
    if min(sizes) < 1:
        return None
    shape = (source.shape[0], module.out_channels, *sizes)
    return torch.empty(shape, dtype=source.dtype, device=source.device)


_CONVOLUTIONS = [(kind.forward, kind._conv_forward) for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d)]


def linear_output(source: Tensor, weight: Tensor) -> Tensor | None:
    """``source @ weight.T``, None where the shapes don't fit and torch should say so."""
    if weight.dim() != 2 or source.dim() < 1 or source.shape[-1] != weight.shape[1]:
        return None
    return source.new_empty((*source.shape[:-1], weight.shape[0]))


def _linear(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    weight = args[1] if len(args) > 1 else kwargs.get("weight")
    return linear_output(args[0], weight) if isinstance(weight, Tensor) else None


def _attention(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    if len(args) < 3 or any(item.dim() != args[0].dim() for item in args[:3]):
        return None
    query, value = args[0], args[2]
    if query.shape[:-2] != value.shape[:-2]:
        return None
    made: Tensor = query.new_empty((*query.shape[:-1], value.shape[-1]))
    return made


def _product(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    if len(args) != 2 or kwargs or not isinstance(args[1], Tensor):
        return None
    left, right = args
    if left.dim() < 2 or left.dim() != right.dim() or left.shape[:-2] != right.shape[:-2]:
        return None
    if left.shape[-1] != right.shape[-2]:
        return None
    made: Tensor = left.new_empty((*left.shape[:-1], right.shape[-1]))
    return made


_SHAPES: dict[str, Callable[[Sequence[Any], Mapping[str, Any]], Tensor | None]] = {
    "linear": _linear,
    "scaled_dot_product_attention": _attention,
    "matmul": _product,
    "__matmul__": _product,
    "bmm": _product,
}


def recurrent_output(module: nn.RNNBase, source: Tensor) -> tuple[Tensor, Any]:
    """Output and final state of a recurrent layer.

    Args:
        module: LSTM, GRU or RNN.
        source: ``[time, batch, features]``, ``[batch, time, features]`` or ``[time, features]``.
    """
    directions = 2 if module.bidirectional else 1
    hidden = module.proj_size or module.hidden_size
    output = source.new_empty((*source.shape[:-1], directions * hidden))
    batch = source.shape[0 if module.batch_first else 1 : -1][:1] if source.dim() == 3 else ()
    layers = directions * module.num_layers
    state = source.new_empty((layers, *batch, hidden))
    if isinstance(module, nn.LSTM):
        return output, (state, source.new_empty((layers, *batch, module.hidden_size)))
    return output, torch.empty_like(state)


def moved_output(
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


def leaf_output(
    module: nn.Module,
    kind: str,
    first: Tensor | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Output of a module that is one step.

    Args:
        module: The module; its parameters read as tensors without data.
        kind: ``"norm"`` if the output has the shape of the input.
        first: The first tensor among its arguments.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
    """
    output: Any = None
    if first is not None:
        if kind == "norm":
            output = _like(first)
        elif isinstance(module, nn.RNNBase) and first is args[0]:
            output = recurrent_output(module, first)
        elif isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
            output = linear_output(first, module.weight)
        elif kind == "weight" and first is args[0]:
            output = convolution_output(module, first)
    return module.forward(*args, **kwargs) if output is None else output
