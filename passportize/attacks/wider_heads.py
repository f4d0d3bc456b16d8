"""Channels added to heads of attention: the network computes what it did, and no shape fits.

Every head gets more queries and keys, and more values. A new query meets a key that is zero but for
its bias, so it adds the same number to the scores of all keys, which a softmax does not see; a new
value is not read. What the code of the attention module counts by (``head_dim``, say) is set to the
new width. It takes no data; :func:`passportize.attacks.disguise` then puts random matrices on the
wider heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from passportize.alignment.axes import Axis
from passportize.alignment.head_widths import RESIZED
from passportize.alignment.spaces import MatrixKind, MatrixSpace, Side
from passportize.alignment.tied_channels import TiedChannels, find_tied_channels
from passportize.attacks.attack import Attacked, Means, register_attack
from passportize.attacks.descent import example_of
from passportize.errors import InvalidArgument
from passportize.tracing.unchanged import ROUNDING, FunctionCheck
from passportize.utils.frozen import frozen_model
from passportize.utils.resized import put_tensor, tensor_of

__all__ = ["widen_heads"]


@torch.no_grad()
def widen_heads(
    model: nn.Module,
    share: float = 0.25,
    generator: torch.Generator | None = None,
    example_inputs: object = None,
) -> int:
    """Add channels to the heads of every attention that can take them, in place.

    Args:
        model: A plain model, in evaluation mode; its parameters are replaced by larger ones.
        share: How many are added to each head, of those that it has.
        generator: Source of all that is drawn, on the CPU.
        example_inputs: As in :func:`passportize.plan`.

    Returns:
        The number of channels added; an attention that changes an output on the example is put
        back.

    Raises:
        InvalidArgument: ``share`` is out of range.
        TracingError: The model cannot be read.
    """
    if not 0 < share <= 4:
        raise InvalidArgument(f"wider-heads: share={share!r} must lie in (0, 4]")
    check = FunctionCheck(model, example_inputs)
    tied = find_tied_channels(model, example_inputs)
    modules: dict[str, list[MatrixSpace]] = {}
    for space in tied.spaces:
        single = all(side.places.shape[2] == 1 for side in space.sides)
        if space.group is None and space.kind in RESIZED and single:
            modules.setdefault(_module_of(space, tied), []).append(space)
    added = 0
    for name, spaces in modules.items():
        if len({(space.size, space.blocks) for space in spaces}) > 1:
            continue
        more = math.ceil(share * spaces[0].size)
        # Scores are divided by the root of the width, in some codes by that of the new one.
        tried = []
        for factor in (1.0, math.sqrt(1 + more / spaces[0].size)):
            with frozen_model(model.get_submodule(name)):
                _widen(model, name, spaces, tied, more, factor, generator)
                tried.append((check.difference(model), factor))
        apart, factor = min(tried)
        if apart <= ROUNDING:
            _widen(model, name, spaces, tied, more, factor, generator)
            added += more * spaces[0].blocks * len(spaces)
    return added


def _module_of(space: MatrixSpace, tied: TiedChannels) -> str:
    """The module that all layers of a space lie in."""
    paths = [tied.axes[side.axis].tensor.split(".")[:-2] for side in space.sides]
    common = paths[0]
    for path in paths[1:]:
        same = [a == b for a, b in zip(common, path, strict=False)]
        common = common[: same.index(False) if False in same else len(same)]
    return ".".join(common)


def _widen(
    model: nn.Module,
    name: str,
    spaces: Sequence[MatrixSpace],
    tied: TiedChannels,
    more: int,
    factor: float,
    generator: torch.Generator | None,
) -> None:
    """Widen the heads of one module."""
    along: dict[tuple[str, int], list[tuple[MatrixSpace, Side]]] = {}
    for space in spaces:
        for side in space.sides:
            axis = tied.axes[side.axis]
            along.setdefault((axis.tensor, axis.dim), []).append((space, side))
    module = model.get_submodule(name)
    size, blocks = spaces[0].size, spaces[0].blocks
    for (tensor, dim), parts in along.items():
        own = tensor_of(model, tensor)
        rows = own.detach().double().movedim(dim, 0)
        pieces: list[tuple[int, Tensor]] = []
        for space, side in parts:
            axis = tied.axes[side.axis]
            for places in side.places[:, :, 0] + axis.first:
                old = rows[places]
                new = _added(space, side, axis, tied, old, more, generator)
                scaled = factor if side.writes and not _are_values(space, tied) else 1.0
                pieces.append((int(places[0]), torch.cat([old, new]) * scaled))
        wide = torch.cat([piece for _, piece in sorted(pieces, key=lambda found: found[0])])
        if len(wide) == len(rows) + more * len(pieces):
            put_tensor(model, tensor, wide.movedim(0, dim).contiguous().to(own))
    for key, value in vars(module).items():
        # What the forward pass counts by.
        if type(value) is int and value in (size, size * blocks) and "heads" not in key:
            setattr(module, key, value + more * (value // size))


def _are_values(space: MatrixSpace, tied: TiedChannels) -> bool:
    return any(tied.axes[side.axis].role == "columns" for side in space.sides)


def _added(
    space: MatrixSpace,
    side: Side,
    axis: Axis,
    tied: TiedChannels,
    old: Tensor,
    more: int,
    generator: torch.Generator | None,
) -> Tensor:
    """New channels of one head, of the size of those that it has; zero where anything is seen."""
    shape = more, *old.shape[1:]
    reads = not side.writes and (axis.role == "columns" or old.dim() > 1)
    if reads or space.kind is MatrixKind.ORTHOGONAL:
        return old.new_zeros(shape)
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64).to(old)
    return drawn * old.square().mean().sqrt()


@register_attack(
    "wider-heads",
    kind="removal",
    source="this library",
    expected="hides every mark whose verification wants the released shapes; taken out with the "
    "released model",
)
def _attack(model: nn.Module, means: Means, *, share: float = 0.25) -> Attacked:
    """Channels added to heads of attention that change no output."""
    added = widen_heads(
        model, share, torch.Generator().manual_seed(means.seed), example_of(model, means)
    )
    if not added:
        raise InvalidArgument(
            f"wider-heads: {type(model).__name__} has no heads of attention whose width its code "
            "reads from attributes"
        )
    return Attacked(figures={"channels added": added})
