"""Where the channels of a norm lie in a tensor of a recorded graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import fx

from passportize.tracing.graph import known_shape

__all__ = ["Track", "carried"]


class Track(NamedTuple):
    """Channels of a norm in a tensor: channel ``c`` is at ``start + j * channels + c``.

    Attributes:
        node: The step that made the tensor.
        dim: The dimension that counts channels.
        start: First entry.
        channels: How many channels.
        repeats: How many runs of all channels follow each other (``j < repeats``).
        picked: Other dimensions of which a single index is meant, as ``(dim, index)``.
    """

    node: fx.Node
    dim: int
    start: int
    channels: int
    repeats: int = 1
    picked: tuple[tuple[int, int], ...] = ()

    @property
    def stop(self) -> int:
        """One past the last entry."""
        return self.start + self.channels * self.repeats


def carried(track: Track, source: fx.Node, dims: Sequence[int | None]) -> list[Track]:
    """A track through a change of dimensions; ``dims[d]`` is where output dimension d was."""
    dim = dims[track.dim]
    if dim is None or track.stop > known_shape(source)[dim]:
        return []
    picked = tuple(
        (where, index) for out, index in track.picked if (where := dims[out]) is not None
    )
    return [track._replace(node=source, dim=dim, picked=tuple(sorted(picked)))]
