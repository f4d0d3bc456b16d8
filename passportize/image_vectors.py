"""Image passports of the inner layers: what a pretrained model makes of the claimant's pictures.

In the published system a layer's image passport is the input of that layer when the picture runs
through a pretrained plain model. Only its mean patch matters (:mod:`passportize.image_passport`),
so that is what an image passport keeps for every layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from passportize.errors import ExampleInputFailed, InvalidArgument
from passportize.image_passport import mean_patch_of
from passportize.model_state import in_eval_mode
from passportize.site import AnchorPart

__all__ = ["part_vectors", "record_patches"]


def record_patches(model: nn.Module, gamma: Tensor, beta: Tensor) -> dict[str, Tensor]:
    """Runs the pictures through a model and keeps the mean patch that every layer sees.

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


def part_vectors(
    patches: Mapping[str, Tensor], part: AnchorPart, fan_in: int | None = None
) -> Tensor | None:
    """Image passport of one part of an anchor.

    Args:
        patches: From :func:`record_patches`.
        part: Rows of a weight.
        fan_in: Entries of one row, to be checked against the picture's.

    Returns:
        ``[fan_in, 2]`` to multiply the rows of :func:`passportize.anchors.anchor_rows` with, or
        ``[groups, fan_in, 2]`` for the equal runs of rows of a grouped convolution. None where
        the published system has no passport: a weight behind the norm, a transposed
        convolution, part of a group, a layer that was not recorded.

    Raises:
        InvalidArgument: The rows have another length than in the model that saw the pictures.
    """
    patch = patches.get(part.weight)
    if patch is None or part.axis != "output" or part.transposed:
        return None
    entries = patch.shape[1] * part.repeats
    if fan_in not in (None, entries):
        raise InvalidArgument(
            f"The image passport has {entries} entries for {part.weight}, the "
            f"model has {fan_in}; make it with Passport.with_images(..., model) for this model."
        )
    if len(patch) == 1:
        return patch[0].repeat(part.repeats, 1)
    # Without the weight the rows of a group are unknown: only the whole of it is safe.
    whole = part.start == 0 and part.repeats == 1 and part.groups == len(patch)
    return patch if whole and part.channels % len(patch) == 0 else None


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
