"""Adapters for norms that nobody registered, made from what the norm is built of.

Third-party models bring norms of their own: a module with a scale, perhaps a shift and perhaps
running statistics, whose forward calls ``F.layer_norm`` and its kin or computes the formula itself.
Since the private forward is the host's own on a view with other factors
(:mod:`passportize.layers.layer`), nothing has to be known about the formula; it is enough that
these are all the tensors that the module owns. What holds more than that needs a registered
adapter.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from passportize.layers.computed import computed_tensors
from passportize.layers.derived import MadeOnDemand, make_class
from passportize.layers.layer import PassportLayer
from passportize.layers.own_methods import foreign_forward
from passportize.layers.private_branch import STATISTICS
from passportize.layers.registry import adapter_for

__all__ = ["StructuralNorm", "adapter_of", "structural_adapter"]

SCALES = ("weight", "gamma", "scale", "g", "alpha", "a_2")
SHIFTS = ("bias", "beta", "shift", "b", "b_2")


class StructuralNorm(MadeOnDemand, PassportLayer):
    """A norm known only by its tensors."""

    # Nobody knows, and it does no harm.
    writes_input = True

    @classmethod
    def channel_choices(cls, norm: nn.Module) -> tuple[tuple[int, int], ...]:
        """The only axis of the scale that is longer than one; else its first and its last."""
        shape = tuple(getattr(norm, cls.scale_name).shape)
        axes = [axis for axis, length in enumerate(shape) if length > 1]
        return tuple((shape[axis], axis) for axis in dict.fromkeys((axes[0], axes[-1])))

    @classmethod
    def mixes_samples(cls, norm: nn.Module) -> bool:
        """Nobody knows, so the rows of the branches are kept apart; frozen ones measure nothing."""
        return not cls.frozen(norm)

    @classmethod
    def frozen(cls, norm: nn.Module) -> bool:
        """Whether its factors are buffers."""
        return cls.scale_name in norm._buffers


def adapter_of(norm: nn.Module) -> type[PassportLayer] | None:
    """The registered adapter of a norm, or one made from its structure, or None.

    A norm whose forward nobody can run apart from it has none.
    """
    if foreign_forward(norm):
        return None
    return adapter_for(norm) or structural_adapter(norm)


def structural_adapter(norm: nn.Module) -> type[PassportLayer] | None:
    """An adapter for a norm by its tensors, or None where they say too little.

    Args:
        norm: A module that is known to be a norm, by its class or name.
    """
    if isinstance(norm, (PassportLayer, LazyModuleMixin)) or foreign_forward(norm):
        return None
    tensors = dict(_tensors(norm))
    if any("." in name for name in tensors):
        return None
    factors = {name: tensor for name, tensor in tensors.items() if name not in STATISTICS}
    scales = [name for name in SCALES if name in factors]
    shifts = [name for name in SHIFTS if name in factors]
    if len(scales) != 1 or len(shifts) > 1 or len(factors) != len(scales) + len(shifts):
        return None
    scale = factors[scales[0]]
    if scale.numel() < 2 or any(factors[name].shape != scale.shape for name in shifts):
        return None
    # Without a shift the name of its usual companion, which the host does not look at.
    shift = shifts[0] if shifts else SHIFTS[min(SCALES.index(scales[0]), len(SHIFTS) - 1)]
    return make_class(
        StructuralNorm, type(norm), (("scale_name", scales[0]), ("shift_name", shift))
    )


def _tensors(norm: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers with names, also those of children.

    Of one that a parametrization or a hook (pruning, weight norm) computes there is what the
    forward uses and not what it is made of.
    """
    computed = computed_tensors(norm)
    hidden = tuple(f"{name}_" for name in computed)
    for name, tensor in (*norm.named_parameters(), *norm.named_buffers()):
        if not name.startswith(("parametrizations.", *hidden)):
            yield name, tensor
    yield from computed.items()
