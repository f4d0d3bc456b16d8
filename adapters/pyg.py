"""PyTorch Geometric's norms on packed nodes ``[N, C]``, with or without a batch vector.

``BatchNorm`` and ``DiffGroupNorm`` need no adapter of their own: they hold a
:class:`torch.nn.BatchNorm1d`, which is the site. That of ``DiffGroupNorm`` has several channels for
each row of the layer before, so it keeps private statistics and carries no bits. For
``BatchNorm(allow_single_element=True)`` see :mod:`passportize.layers.pyg_single_row`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch_geometric.nn.norm import (
    GraphNorm,
    GraphSizeNorm,
    HeteroBatchNorm,
    HeteroLayerNorm,
    InstanceNorm,
    LayerNorm,
    MeanSubtractionNorm,
    MessageNorm,
    PairNorm,
)

from passportize.errors import BranchMisuse
from passportize.layers.layer import PassportLayer
from passportize.layers.switch import Pass

__all__ = [
    "ADAPTERS",
    "NOT_ADAPTED",
    "PassportGraphNorm",
    "PassportHeteroBatchNorm",
    "PassportHeteroLayerNorm",
    "PassportInstanceNorm",
    "PassportLayerNorm",
    "PygAdapter",
]


class PygAdapter(PassportLayer):
    """What all adapters for packed nodes share.

    Further arguments (``batch``, ``batch_size``, ``type_vec``, ``type_ptr``) go to the host as
    they came, so the two branches need passes of their own.
    """

    @classmethod
    def mixes_samples(cls, norm: nn.Module) -> bool:
        """Whether it keeps running statistics or takes statistics over the nodes it is given."""
        return True

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The branch that the switch says.

        Raises:
            BranchMisuse: Both branches were put into one batch of packed nodes.
        """
        switch = self.passport.switch
        if switch.effective() is Pass.JOINT and switch.private_rows:
            raise BranchMisuse(
                f"{self.passport.site.name}: packed nodes of both branches cannot share one "
                f"forward pass; {switch.two_passes}"
            )
        return super().forward(*args, **kwargs)


class PassportLayerNorm(PygAdapter, LayerNorm):  # type: ignore[misc]
    """:class:`torch_geometric.nn.norm.LayerNorm` in graph or node mode."""

    @classmethod
    def channel_choices(cls, norm: nn.Module) -> tuple[tuple[int, int], ...]:
        """``in_channels`` channels."""
        return ((_count(norm, "in_channels"), 0),)

    @classmethod
    def mixes_samples(cls, norm: nn.Module) -> bool:
        """Only without a batch vector, where graph mode averages over all nodes."""
        return getattr(norm, "mode", "graph") == "graph"


class PassportGraphNorm(PygAdapter, GraphNorm):  # type: ignore[misc]
    """:class:`torch_geometric.nn.norm.GraphNorm`; ``mean_scale`` is shared by both branches."""

    sign_follows_scale = True


class PassportInstanceNorm(PygAdapter, InstanceNorm):  # type: ignore[misc]
    """:class:`torch_geometric.nn.norm.InstanceNorm`."""

    sign_follows_scale = True

    @classmethod
    def channel_choices(cls, norm: nn.Module) -> tuple[tuple[int, int], ...]:
        """``num_features`` channels."""
        return ((_count(norm, "num_features"), 0),)


class HeteroAdapter(PygAdapter):
    """Norms with one affine row per type of node, ``[types, channels]``.

    One anchor answers for all types, so the rows share the private factors of a channel.
    """

    @classmethod
    def channel_choices(cls, norm: nn.Module) -> tuple[tuple[int, int], ...]:
        """``in_channels`` channels on the second axis of the affine shape."""
        return ((_count(norm, "in_channels"), 1),)

    def private_norm(
        self, x: Tensor, scale: Tensor | None, shift: Tensor | None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """As the host computes it; factors of a norm without any serve every type."""
        if self.affine or scale is None:
            return super().private_norm(x, scale, shift, *args, **kwargs)
        out = super().private_norm(x, None, None, *args, **kwargs) * scale
        return out if shift is None else out + shift


class PassportHeteroBatchNorm(HeteroAdapter, HeteroBatchNorm):  # type: ignore[misc]
    """:class:`torch_geometric.nn.norm.HeteroBatchNorm` with a private branch."""


class PassportHeteroLayerNorm(HeteroAdapter, HeteroLayerNorm):  # type: ignore[misc]
    """:class:`torch_geometric.nn.norm.HeteroLayerNorm` with a private branch."""

    @classmethod
    def mixes_samples(cls, norm: nn.Module) -> bool:
        """Never: each node is normalised on its own."""
        return False


def _count(norm: nn.Module, attribute: str) -> int:
    return int(getattr(norm, attribute))


_NOTHING = "has no affine parameters and no statistics, so nothing to bind"

NOT_ADAPTED: dict[type[nn.Module], str] = {
    GraphSizeNorm: _NOTHING,
    MeanSubtractionNorm: _NOTHING,
    PairNorm: _NOTHING,
    MessageNorm: "has one scale for all channels, so nothing to bind per channel",
}

ADAPTERS: dict[type[nn.Module], type[PassportLayer]] = {
    GraphNorm: PassportGraphNorm,
    HeteroBatchNorm: PassportHeteroBatchNorm,
    HeteroLayerNorm: PassportHeteroLayerNorm,
    InstanceNorm: PassportInstanceNorm,
    LayerNorm: PassportLayerNorm,
}
