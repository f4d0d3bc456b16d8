"""Where the channels of a norm lie in a tensor of a recorded graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import fx, nn

from passportize.tracing.graph import known_shape

__all__ = ["Track", "carried", "channel_dims"]


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


def channel_dims(module: nn.Module, shape: Sequence[int], width: int) -> list[int]:
    """Dimensions of the input that may count the channels, the likeliest first."""
    rank = len(shape)
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and len(module.normalized_shape) > 1:
        order = list(range(rank - len(module.normalized_shape), rank))
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and rank != 4:
        order = [rank - 1]
    elif isinstance(module, (nn.modules.batchnorm._NormBase, nn.GroupNorm)):
        order = [1, rank - 1, 0]
    elif rank >= 4:
        order = [1, rank - 1] if not isinstance(module, nn.LayerNorm) else [rank - 1, 1]
    else:
        order = [rank - 1, 1, 0]
    return [d for d in dict.fromkeys(order) if 0 <= d < rank and shape[d] == width]
