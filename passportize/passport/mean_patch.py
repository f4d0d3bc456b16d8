"""From a passport tensor to the one vector per group that a private branch stores.

The published response is the average of a convolution, ``u = Avg_{positions, batch}(W * p)``. It
is linear in ``p``, so the average can be taken first: ``u_o = rows(W)_o . s_g(o)``, where ``s``
is the mean of the patches of ``p`` that the kernel sees, padding included. The positions of a
strided convolution form a box, so the mean is taken axis by axis and no patch is ever unfolded.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from passportize.errors import ExampleInputFailed, InvalidArgument
from passportize.utils.frozen import in_eval_mode

__all__ = ["averaged_response", "mean_patch", "mean_patch_of", "record_patches"]

_PADDING_MODES = ("zeros", "circular", "reflect", "replicate")


def mean_patch(
    passport: Tensor,
    weight_shape: Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Tensor:
    """Mean patch of a passport under a convolution or linear layer.

    ``conv(W, passport).mean(batch and positions)`` equals ``averaged_response(W, mean_patch)`` up
    to rounding, border included: a position outside the passport counts as ``padding_mode`` says.

    Args:
        passport: The layer's input: ``[C_in, *spatial]`` or ``[N, C_in, *spatial]`` for a
            convolution, ``[..., C_in]`` for a linear layer (mean over all tokens).
        weight_shape: ``[C_out, C_in / groups, *kernel]``, or ``[C_out, C_in]``.
        stride: As in ``torch.nn.Conv1d``, ``Conv2d``, ``Conv3d``.
        padding: The same; also ``"same"`` and ``"valid"``.
        dilation: The same.
        groups: The same.
        padding_mode: The same.

    Returns:
        ``[groups, C_in / groups * prod(kernel)]``: one vector per group, laid out like a row of the
        flattened weight. In the type of the passport (float32 for integers), summed in float64.

    Raises:
        InvalidArgument: The passport does not fit the layer.
    """
    if not isinstance(passport, Tensor) or passport.is_complex():
        raise InvalidArgument("the passport must be a real tensor")
    if len(weight_shape) < 2:
        raise InvalidArgument(
            f"weight_shape must be [C_out, C_in / groups, *kernel], got {list(weight_shape)}"
        )
    if not isinstance(groups, int) or groups < 1:
        raise InvalidArgument(f"groups must be an integer of at least 1, got {groups!r}")
    kernel = tuple(weight_shape[2:])
    axes = len(kernel)
    channels = weight_shape[1] * groups
    channel_axis = -1 - axes
    if passport.dim() < 1 + axes or (axes and passport.dim() > 2 + axes):
        form = f"[N, C, *spatial] or [C, *spatial] with {axes} spatial axes" if axes else "[..., C]"
        raise InvalidArgument(
            f"the passport has the shape {list(passport.shape)}; this layer takes {form}"
        )
    if passport.shape[channel_axis] != channels or passport.numel() == 0:
        raise InvalidArgument(
            f"the passport has the shape {list(passport.shape)}, but the layer takes {channels} "
            "channels; give the passport of this very layer"
        )
    result_type = passport.dtype if passport.is_floating_point() else torch.float32
    exact = passport.to(torch.float64)
    if not axes:
        return exact.reshape(-1, channels).mean(0).reshape(groups, -1).to(result_type)
    if padding_mode not in _PADDING_MODES:
        raise InvalidArgument(f"padding_mode {padding_mode!r} is none of {_PADDING_MODES}")
    steps, gaps = _per_axis(stride, axes, "stride", 1), _per_axis(dilation, axes, "dilation", 1)
    pads = _pads(padding, kernel, gaps)
    exact = _pad(exact.reshape(-1, *exact.shape[channel_axis:]), pads, padding_mode)
    for axis, (size, step, gap) in enumerate(zip(kernel, steps, gaps, strict=True), start=2):
        exact = _mean_over_positions(exact, axis, size, step, gap)
    return exact.mean(0).reshape(groups, -1).to(result_type)


def mean_patch_of(layer: nn.Module, passport: Tensor) -> Tensor:
    """:func:`mean_patch` with the settings of a convolution or linear layer.

    Raises:
        InvalidArgument: Another kind of layer, or a passport that does not fit it.
    """
    # A subclass with a forward of its own (padding computed on the fly, say) is another map.
    if isinstance(layer, nn.Linear) and type(layer).forward is nn.Linear.forward:
        return mean_patch(passport, layer.weight.shape)
    for plain in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        if (
            isinstance(layer, plain)
            and type(layer).forward is plain.forward
            and type(layer)._conv_forward is plain._conv_forward
        ):
            return mean_patch(
                passport,
                layer.weight.shape,
                stride=layer.stride,
                padding=layer.padding,
                dilation=layer.dilation,
                groups=layer.groups,
                padding_mode=layer.padding_mode,
            )
    raise InvalidArgument(
        f"{type(layer).__name__} is neither Linear nor Conv1d, Conv2d or Conv3d as torch.nn has "
        "them; call mean_patch with its stride, padding and so on"
    )


def averaged_response(weight: Tensor, patches: Tensor) -> Tensor:
    """The published response of every output channel, without the bias.

    Args:
        weight: ``[C_out, C_in / groups, *kernel]``.
        patches: ``[groups, C_in / groups * prod(kernel)]`` from :func:`mean_patch`.

    Returns:
        ``[C_out]``, differentiable in both.

    Raises:
        InvalidArgument: The shapes do not belong together.
    """
    rows = weight.flatten(1)
    if patches.dim() != 2 or rows.shape[1] != patches.shape[1] or len(rows) % len(patches):
        raise InvalidArgument(
            f"mean patches {list(patches.shape)} do not fit a weight {list(weight.shape)}"
        )
    grouped = rows.reshape(len(patches), -1, rows.shape[1])
    return torch.bmm(grouped, patches.unsqueeze(2)).flatten()


def _mean_over_positions(passport: Tensor, axis: int, size: int, step: int, gap: int) -> Tensor:
    """Replace a spatial axis by a kernel axis: entry ``k`` is the mean of what ``k`` meets."""
    extent = passport.shape[axis]
    positions = (extent - gap * (size - 1) - 1) // step + 1
    if positions < 1:
        raise InvalidArgument(
            f"the padded passport has {extent} entries along axis {axis}, fewer than the kernel "
            f"spans ({gap * (size - 1) + 1}); use larger images"
        )
    means = []
    for offset in range(size):
        first = gap * offset
        window = passport.narrow(axis, first, step * (positions - 1) + 1)
        index = [slice(None)] * passport.dim()
        index[axis] = slice(None, None, step)
        means.append(window[tuple(index)].mean(axis))
    return torch.stack(means, axis)


def _pads(
    padding: int | str | Sequence[int], kernel: Sequence[int], gaps: Sequence[int]
) -> list[tuple[int, int]]:
    """Padding before and after, per spatial axis."""
    if padding == "valid":
        return [(0, 0)] * len(kernel)
    if padding == "same":
        # An odd total puts the extra entry behind, as torch.nn does.
        totals = [gap * (size - 1) for size, gap in zip(kernel, gaps, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    if isinstance(padding, str):
        raise InvalidArgument(f'padding must be numbers, "same" or "valid", got {padding!r}')
    return [(pad, pad) for pad in _per_axis(padding, len(kernel), "padding", 0)]


def _pad(passport: Tensor, pads: list[tuple[int, int]], mode: str) -> Tensor:
    flat = [pad for pair in reversed(pads) for pad in pair]
    if not any(flat):
        return passport
    try:
        return functional.pad(passport, flat, mode="constant" if mode == "zeros" else mode)
    except RuntimeError:
        raise InvalidArgument(
            f"the passport {list(passport.shape)} is too small for padding {pads} of the mode "
            f"{mode!r}; use larger images"
        ) from None


def _per_axis(value: int | Sequence[int], axes: int, name: str, least: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    if len(values) == 1:
        values *= axes
    if len(values) != axes or any(not isinstance(v, int) or v < least for v in values):
        raise InvalidArgument(f"{name} {value!r} does not fit {axes} spatial axes")
    return values


# --- the inner layers: what a pretrained model makes of the claimant's pictures ---------------
#
# In the published system a layer's image passport is the input of that layer when the picture runs
# through a pretrained plain model. Only its mean patch matters, so that is all that is kept.


def record_patches(model: nn.Module, gamma: Tensor, beta: Tensor) -> dict[str, Tensor]:
    """Run the pictures through a model and keep the mean patch that every layer sees.

    The model runs in eval mode without gradients and is left as it was. Layers other than Linear
    and Conv1d, Conv2d, Conv3d as ``torch.nn`` has them are left out, and so are layers that do not
    run. The mean is taken over batch, positions and, for a layer that runs several times, calls.

    Args:
        model: The pretrained plain model.
        gamma: Its input for the gamma side, float, ``[C, *spatial]`` or ``[N, C, *spatial]``.
        beta: The same for beta.

    Returns:
        By name of the weight: float32 ``[groups, C_in / groups * prod(kernel), 2]``, gamma and
        beta.

    Raises:
        ExampleInputFailed: The model does not take the pictures.
    """
    sides = [_one_side(model, picture) for picture in (gamma, beta)]
    shared = [name for name in sides[0] if name in sides[1]]
    patches = {name: torch.stack([side[name] for side in sides], dim=-1) for name in shared}
    return {name: patch for name, patch in patches.items() if bool(patch.isfinite().all())}


def _one_side(model: nn.Module, picture: Tensor) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}
    calls: dict[str, int] = {}
    names = {id(weight): name for name, weight in model.named_parameters()}

    def record(module: nn.Module, inputs: tuple[Any, ...], more: dict[str, Any]) -> None:
        given = inputs[0] if inputs else more.get("input")
        name = names.get(id(module._parameters.get("weight")))
        if name is None or not isinstance(given, Tensor):
            return
        try:
            patch = mean_patch_of(module, given.detach().to("cpu", torch.float32))
        except InvalidArgument:
            return
        sums[name] = sums[name] + patch if name in sums else patch
        calls[name] = calls.get(name, 0) + 1

    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
                hook = module.register_forward_pre_hook(record, with_kwargs=True)
                stack.callback(hook.remove)
        stack.enter_context(in_eval_mode(model))
        stack.enter_context(torch.no_grad())
        batch = picture.to(like.device, like.dtype)
        try:
            model(batch if batch.dim() > 3 else batch.unsqueeze(0))
        except Exception as problem:
            raise ExampleInputFailed(
                f"{type(model).__name__} does not take the pictures {list(picture.shape)} of the "
                f"image passport: {type(problem).__name__}: {problem}"
            ) from problem
    return {name: total / calls[name] for name, total in sums.items()}
