"""Dummy neurons: channels that change no output and no architecture fits any more.

Three kinds of them, after "Rethinking White-Box Watermarks on Deep Learning Models under Neural
Structural Obfuscation" (USENIX Security 2023): ``zero``, whose outgoing weights are zero;
``clique``, pairs of one new channel whose outgoing weights cancel; ``split``, a channel that is
there twice, with its outgoing weights parted between the two. All are put at random places. It
takes no data. Done where channels run from convolutions or linear layers through BatchNorm,
depthwise convolutions, concatenations and functions of single channels into others of them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from passportize.alignment.axes import Axis
from passportize.alignment.tied_channels import TiedChannels, TiedGroup, find_tied_channels
from passportize.attacks.attack import Attacked, Means, register_attack
from passportize.attacks.descent import example_of
from passportize.errors import InvalidArgument
from passportize.tracing.unchanged import FunctionCheck
from passportize.utils.resized import put_tensor, tensor_of

__all__ = ["VARIANTS", "add_dummy_neurons", "can_resize"]

VARIANTS = ("zero", "clique", "split")
_OWNERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.modules.batchnorm._BatchNorm)
_ROLES = {"rows", "columns", "vector", "mean", "variance", "scale"}


@torch.no_grad()
def add_dummy_neurons(
    model: nn.Module,
    variant: str = "zero",
    share: float = 0.1,
    generator: torch.Generator | None = None,
    example_inputs: Any = None,
) -> int:
    """Add dummy channels to every group of channels that can take them, in place.

    Args:
        model: A plain model, in evaluation mode; its parameters are replaced by larger ones.
        variant: One of :data:`VARIANTS`.
        share: How many are added, of those that are there.
        generator: Source of all that is drawn, on the CPU.
        example_inputs: As in :func:`passportize.plan`.

    Returns:
        The number of channels added; a group whose dummies change an output on the example is put
        back.

    Raises:
        InvalidArgument: An argument is out of range.
        TracingError: The model cannot be read.
    """
    if variant not in VARIANTS or not 0 < share <= 4:
        raise InvalidArgument(
            f"dummy-neurons: variant={variant!r} must be one of {', '.join(VARIANTS)}, "
            f"share={share!r} lie in (0, 4]"
        )
    check = FunctionCheck(model, example_inputs)
    tied = find_tied_channels(model, example_inputs)
    added = 0
    grown: dict[tuple[str, int], list[tuple[int, int]]] = defaultdict(list)
    for group in tied.groups:
        if not can_resize(model, tied, group):
            continue
        places = []
        for number, where in group.places:
            axis = tied.axes[number]
            if axis.moves:
                # Where channels of several groups lie side by side, those in front may have grown.
                in_front = grown[axis.tensor, axis.dim]
                places.append((axis, where + sum(n for at, n in in_front if at < where[0, 0])))
        before = {axis.tensor: tensor_of(model, axis.tensor) for axis, _ in places}
        count = math.ceil(share * group.size)
        count += count % 2 if variant == "clique" else 0
        count = min(count, group.size) if variant == "split" else count
        _grow(model, places, group.size, count, variant, generator)
        if check.changed(model):
            for name, tensor in before.items():
                put_tensor(model, name, tensor)
            continue
        added += count
        for number, where in group.places:
            axis = tied.axes[number]
            if axis.moves:
                more = count * where.shape[1]
                grown[axis.tensor, axis.dim].append((int(where[0, 0]), more))
    return added


def can_resize(model: nn.Module, tied: TiedChannels, group: TiedGroup) -> bool:
    """Whether all that a group lies on is in one piece, in layers that take any width."""
    places = [(tied.axes[number], where) for number, where in group.places]
    lying = {(axis.tensor, axis.dim) for axis, _ in places if axis.moves}
    if len(lying) != sum(axis.moves for axis, _ in places):
        return False
    for axis, where in places:
        owner = model.get_submodule(axis.tensor.rpartition(".")[0])
        shared = any(name == axis.tensor for name in tied.aliases.values())
        if not isinstance(owner, _OWNERS) or shared:
            return False
        if getattr(owner, "groups", 1) not in (1, getattr(owner, "in_channels", 1)):
            return False
        one_piece = torch.equal(where.flatten(), where[0, 0] + torch.arange(where.numel()))
        if not one_piece or axis.rows is not None or axis.role not in _ROLES:
            return False
    return True


def _grow(
    model: nn.Module,
    places: Sequence[tuple[Axis, Tensor]],
    size: int,
    count: int,
    variant: str,
    generator: torch.Generator | None,
) -> None:
    """One group with so many more channels, all of them at random places."""
    sources = torch.randperm(size, generator=generator)
    sources = sources[torch.arange(count) % size]
    if variant == "clique":
        sources = sources[torch.arange(count) // 2]
    shares = 0.25 + 0.5 * torch.rand(count, generator=generator, dtype=torch.float64)
    order = torch.randperm(size + count, generator=generator)
    for axis, where in places:
        tensor = tensor_of(model, axis.tensor)
        whole = tensor.detach().double().cpu().movedim(axis.dim, 0)
        first, length = axis.first + int(where[0, 0]), where.numel()
        old = whole[first : first + length].reshape(size, length // size, *whole.shape[1:])
        new = old[sources].clone()
        if axis.role == "columns":
            if variant == "split":
                parts = shares.view(-1, *[1] * (old.dim() - 1))
                old = old.clone()
                old[sources] = old[sources] * parts
                new = new * (1 - parts)
            elif variant == "zero":
                new = torch.zeros_like(new)
            else:
                half = _like(new[::2], generator)
                new = torch.stack([half, -half], dim=1).flatten(0, 1)
        elif axis.role == "rows" and variant != "split":
            fresh = _like(new, generator)
            new = fresh if variant == "zero" else fresh[::2].repeat_interleave(2, 0)
        grown = torch.cat([old, new])[order].flatten(0, 1)
        grown = torch.cat([whole[:first], grown, whole[first + length :]])
        grown = grown.movedim(0, axis.dim).contiguous()
        put_tensor(model, axis.tensor, grown.to(tensor.device, tensor.dtype))


def _like(values: Tensor, generator: torch.Generator | None) -> Tensor:
    """Normal numbers, those of each channel of the size of its values.

    Channels may differ in size by decades, after a disguise say: dummies of the mean size would
    then be far larger than most, and in float32 what cancels would no longer cancel.
    """
    drawn = torch.randn(values.shape, generator=generator, dtype=values.dtype)
    return drawn * values.flatten(1).square().mean(1).sqrt().view(-1, *[1] * (values.dim() - 1))


@register_attack(
    "dummy-neurons",
    kind="removal",
    source="Yan et al., Rethinking White-Box Watermarks on Deep Learning Models under Neural "
    "Structural Obfuscation, USENIX Security 2023",
    expected="hides every mark whose verification wants the released shapes; taken out with the "
    "released weights",
)
def _attack(
    model: nn.Module, means: Means, *, variant: str = "zero", share: float = 0.1
) -> Attacked:
    """Channels added that change no output: zero, clique or split."""
    added = add_dummy_neurons(
        model,
        variant,
        share,
        torch.Generator().manual_seed(means.seed),
        example_of(model, means),
    )
    if not added:
        raise InvalidArgument(
            f"dummy-neurons: {type(model).__name__} has no channels between convolutions or linear "
            "layers with BatchNorm that could be added to"
        )
    return Attacked(figures={"channels added": added})
