"""Follow the channels of a tensor forwards through one step of a recorded graph."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import fx

from passportize.anchors.step_back import step_back
from passportize.anchors.track import Track
from passportize.tracing.graph import (
    argument,
    first_operand,
    known_shape,
    shape_of,
    step_name,
    tensor_list,
)
from passportize.tracing.operations import CAT_STEPS, RESHAPE_STEPS

__all__ = ["forward_tracks"]


def forward_tracks(track: Track) -> Iterator[Track]:
    """Where the channels of a tensor lie in the tensors made from it, one step on.

    Followed are moves of all the channels as one run, and heads that are laid side by side: there
    the channels are repeated.
    """
    for user in track.node.users:
        outputs = [user] if shape_of(user) is not None else list(user.users)
        for made in outputs:
            shape = shape_of(made)
            if shape is None:
                continue
            yield from _ahead(track, made, shape)


def _merged(track: Track, made: fx.Node, shape: tuple[int, ...]) -> Iterator[Track]:
    """Into a dimension of which the channels are the inner part: once for each of the outer."""
    source = known_shape(track.node)
    width, inner = source[track.dim], math.prod(source[track.dim + 1 :])
    if track.start != 0 or track.stop != width:
        return
    for dim, size in enumerate(shape):
        if math.prod(shape[dim + 1 :]) == inner and size > width and size % width == 0:
            repeats = track.repeats * (size // width)
            yield track._replace(node=made, dim=dim, repeats=repeats, picked=())
            return


def _ahead(track: Track, made: fx.Node, shape: tuple[int, ...]) -> Iterator[Track]:
    width = known_shape(track.node)[track.dim]
    name = step_name(made)
    if name in CAT_STEPS:
        offset = 0
        for item in tensor_list(made):
            if item is track.node and int(argument(made, 1, "dim", 0)) % len(shape) == track.dim:
                yield track._replace(node=made, start=offset + track.start, picked=())
                return
            offset += known_shape(item)[track.dim] if len(known_shape(item)) == len(shape) else 0
    for dim, size in enumerate(shape):
        if size > width or size < track.channels:
            continue
        whole = Track(made, dim, 0, size)
        for back in step_back(whole):
            if back.node is not track.node or back.dim != track.dim or back.repeats != 1:
                continue
            if back.start <= track.start and track.stop <= back.start + size:
                yield track._replace(node=made, dim=dim, start=track.start - back.start, picked=())
                return
    if name in RESHAPE_STEPS and first_operand(made) is track.node:
        yield from _merged(track, made, shape)
