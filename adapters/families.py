"""What the norms of other libraries have in common, and how their adapters are made.

The private forward of all of them is the host's own, see
:class:`passportize.layers.host_view.HostView`;
a family only says what a channel is.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from passportize.adapters.layer_norm import channels_of_normalized_shape
from passportize.layers.layer import PassportLayer

__all__ = [
    "AcrossChannels",
    "AcrossChannelsLessMean",
    "BatchStatistics",
    "FrozenStatistics",
    "PerChannel",
    "make_adapters",
]


class PerChannel(PassportLayer):
    """Norms with one scale per channel whose statistics do not mix channels of other signs.

    The network keeps its function when the row, the mean and the scale of a channel (of a group,
    for GroupNorm) change sign together.
    """

    sign_follows_scale = True

    @classmethod
    def channel_choices(cls, norm: nn.Module) -> tuple[tuple[int, int], ...]:
        """Length of the scale, or what the norm says where it has none."""
        scale = getattr(norm, cls.scale_name, None)
        if scale is not None:
            return ((int(scale.shape[0]), 0),)
        for attribute in ("num_channels", "num_features"):
            if hasattr(norm, attribute):
                return ((int(getattr(norm, attribute)), 0),)
        return super().channel_choices(norm)


class BatchStatistics(PerChannel):
    """Norms whose training statistics are those of the batch."""

    @classmethod
    def mixes_samples(cls, norm: nn.Module) -> bool:
        """Always."""
        return True


class FrozenStatistics(PerChannel):
    """Norms with fixed statistics and factors, kept as buffers."""

    @classmethod
    def mixes_samples(cls, norm: nn.Module) -> bool:
        """Never: nothing is measured."""
        return False

    @classmethod
    def frozen(cls, norm: nn.Module) -> bool:
        """Always."""
        return True


class AcrossChannels(PassportLayer):
    """RMSNorm and its kin: statistics over ``normalized_shape``."""

    @classmethod
    def channel_choices(cls, norm: nn.Module) -> tuple[tuple[int, int], ...]:
        """Last or first normalised dimension."""
        shape: tuple[int, ...] = tuple(norm.normalized_shape)  # type: ignore[arg-type]
        return channels_of_normalized_shape(shape)

    def private_norm(
        self, x: Tensor, scale: Tensor | None, shift: Tensor | None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """As the host computes it; factors of a norm without any are spread over its shape."""
        shape: tuple[int, ...] = tuple(self.normalized_shape)  # type: ignore[arg-type]
        if getattr(self, self.scale_name, None) is None and len(shape) > 1:
            scale, shift = (
                None if side is None else self.passport.spread(side, shape)
                for side in (scale, shift)
            )
        return super().private_norm(x, scale, shift, *args, **kwargs)


class AcrossChannelsLessMean(AcrossChannels):
    """LayerNorm and its kin: they take the mean away, as RMSNorm does not."""

    @classmethod
    def removes_mean(cls, norm: nn.Module) -> bool:
        """If it norms over the channels alone."""
        return len(norm.normalized_shape) == 1  # type: ignore[arg-type]


def make_adapters(
    module: ModuleType, families: Mapping[str, type[PassportLayer]], namespace: dict[str, Any]
) -> dict[type[nn.Module], type[PassportLayer]]:
    """One adapter class for every norm of a table that the installed release has.

    Args:
        module: Where the norms are defined.
        families: Name of the norm class to the family that it belongs to.
        namespace: ``globals()`` of the caller. The classes are put there, under
            ``Passport<Norm>``, so that pickle finds them by name.

    Returns:
        Norm class to adapter class.
    """
    adapters: dict[type[nn.Module], type[PassportLayer]] = {}
    for name, family in families.items():
        norm_class = getattr(module, name, None)
        if norm_class is None:
            continue
        documentation = f":class:`{norm_class.__module__}.{name}` with a private branch."
        adapter = type(
            f"Passport{name}",
            (family, norm_class),
            {"__module__": namespace["__name__"], "__doc__": documentation},
        )
        namespace[adapter.__name__] = adapter
        adapters[norm_class] = adapter
    return adapters
