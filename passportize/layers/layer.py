"""The two-branch layer: a mixin in front of the host's class, and what an adapter must say."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from passportize.errors import BranchMisuse, UnsupportedNorm
from passportize.layers.host_view import HostView, view_of
from passportize.layers.private_branch import STATISTICS, Branch
from passportize.layers.switch import Pass
from passportize.utils.frozen import frozen_random_state

__all__ = ["PassportLayer"]


class PassportLayer(nn.Module):
    """A norm with a private branch beside its public one.

    Surgery changes the class of a live norm from ``H`` to a subclass of ``(PassportLayer, H)``
    and adds one submodule, ``passport``. In a public pass ``forward`` is that of ``H``, so the
    output is the same to the last bit; changing the class back and deleting the submodule
    restores the norm exactly.

    An adapter is such a subclass, often an empty one. It sets the class attributes below and says
    with :meth:`channel_choices` what a channel is; :meth:`private_norm` is the host's own forward.

    Attributes:
        host_class: The class that the layer had, set by ``register_adapter``.
        view_class: The class of its views, set likewise.
        scale_name, shift_name: Names of the affine parameters.
        sign_follows_scale: Whether the network keeps its function when the anchor row, the mean
            and the scale of one channel change sign together: true for statistics per channel.
        writes_input: Whether the host's forward may work in place on its input.
    """

    host_class: ClassVar[type[nn.Module]]
    view_class: ClassVar[type[HostView]]
    scale_name: ClassVar[str] = "weight"
    shift_name: ClassVar[str] = "bias"
    sign_follows_scale: ClassVar[bool] = False
    writes_input: ClassVar[bool] = False

    passport: Branch

    # --- what an adapter says about a norm that has not been swapped -----------------------------

    @classmethod
    def channel_choices(cls, norm: nn.Module) -> tuple[tuple[int, int], ...]:
        """Pairs of (number of channels, axis of the affine shape), the likeliest first."""
        scale = getattr(norm, cls.scale_name, None)
        if scale is not None:
            return ((int(scale.shape[0]), 0),)
        raise UnsupportedNorm(f"{cls.__name__} must say how many channels a norm without scale has")

    @classmethod
    def refusal(cls, norm: nn.Module) -> str:
        """Why this very norm cannot be swapped, or an empty string."""
        return ""

    @classmethod
    def mixes_samples(cls, norm: nn.Module) -> bool:
        """Whether one sample's output or the norm's state depends on the others in the batch.

        If so, the rows of the two branches must not meet in it, even where no passport is wanted.
        """
        return any(getattr(norm, name, None) is not None for name in STATISTICS)

    @classmethod
    def frozen(cls, norm: nn.Module) -> bool:
        """Whether its factors never train: then it is bound with ``include_frozen=True`` only."""
        return False

    @classmethod
    def removes_mean(cls, norm: nn.Module) -> bool:
        """Whether it takes the mean over all channels at each position, as LayerNorm does."""
        return False

    # --- what an adapter computes ----------------------------------------------------------------

    def private_norm(
        self, x: Tensor, scale: Tensor | None, shift: Tensor | None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """What the host's forward does, with this scale and shift and the branch's statistics.

        The default runs the host's forward on a :class:`~passportize.layers.host_view.HostView`.

        Args:
            x: The rows of the private branch, in the host's input layout.
            scale: In the shape of the host's scale, ``[channels]`` where it has none.
            shift: Likewise; None where the host has a scale but no shift.
            *args: Further arguments of the host's forward.
            **kwargs: Likewise.

        Returns:
            A fresh tensor: what follows may work in place.

        Raises:
            BranchMisuse: The host's forward takes its scale from elsewhere than the norm that it is
                called on, so the private branch would compute the public one.
        """
        kept = {
            name: value
            for name in STATISTICS
            if (value := getattr(self.passport, name)) is not None
        }
        view = view_of(self, {**kept, self.scale_name: scale, self.shift_name: shift})
        eager = not torch.compiler.is_compiling()
        version = x._version if eager and not x.is_inference() else None
        try:
            out = cast(Tensor, view.forward(x, *args, **kwargs))
        except (AttributeError, KeyError) as error:
            raise self._misuse(f"cannot run with other factors ({error})") from error
        with torch.no_grad():
            for name, buffer in kept.items():
                value = view.replaced(name)
                if value is not buffer:
                    # The forward has set it anew instead of writing into it.
                    buffer.copy_(value)
        # Nothing is normalised of an empty input.
        ignored = scale is not None and not view.has_read(self.scale_name) and x.numel()
        if ignored and self.passport.transforms and eager:
            written = version is not None and version != x._version
            if written or torch.equal(out, self._with_public_scale(x, shift, *args, **kwargs)):
                raise self._misuse(
                    f"does not read {self.scale_name!r} from the module that it is called on, so "
                    "the private branch would compute the public one"
                )
        return out

    @torch.no_grad()
    def _with_public_scale(
        self, x: Tensor, shift: Tensor | None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """What the private branch would give if its scale were the public one; changes nothing."""
        replaced: dict[str, Any] = {
            name: value.clone()
            for name in STATISTICS
            if (value := getattr(self.passport, name)) is not None
        }
        replaced |= {self.scale_name: getattr(self, self.scale_name, None), self.shift_name: shift}
        with frozen_random_state():
            return cast(Tensor, view_of(self, replaced).forward(x.clone(), *args, **kwargs))

    def _misuse(self, what: str) -> BranchMisuse:
        return BranchMisuse(
            f"{self.passport.site.name}: the forward of {self.host_class.__name__} {what}; leave "
            "the norm out with where=, or register an adapter for it, see docs/adapters.md"
        )

    def private_factors(
        self, like: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Private scale, private shift and penalty, see :meth:`Branch.forward`."""
        scale = getattr(self, self.scale_name, None)
        shift = getattr(self, self.shift_name, None)
        return cast(
            "tuple[Tensor | None, Tensor | None, Tensor | None]",
            self.passport(scale, shift, like),
        )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.passport.fill_in(state_dict, prefix)

    # --- the switch ------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The host's forward, or both branches, as the switch says."""
        branch = self.passport
        switch = branch.switch
        current = switch.effective()
        if current is Pass.PUBLIC:
            return self._public(*args, **kwargs)
        if args:
            x, *others = args
        else:
            # Called by keyword, as in norm(input=x): the first one is what is normalised.
            x, others = kwargs.pop(next(iter(kwargs))), []
        idle = switch.private_rows == 0 and branch.bottleneck is not None
        sign_due = switch.sign_due and branch.site.name not in switch.gathered
        if current is Pass.JOINT and not (switch.private_rows or sign_due or idle):
            return self._public(x, *others, **kwargs)
        scale, shift, penalty = self.private_factors(x)
        if current is Pass.PRIVATE:
            return self._private(x, scale, shift, *others, **kwargs)
        if idle and scale is not None:
            # DDP waits for a gradient of every parameter, also of what only this branch trains.
            nought = 0.0 * (scale.sum() if shift is None else scale.sum() + shift.sum())
            penalty = nought if penalty is None or not sign_due else penalty + nought
        if sign_due or idle:
            switch.collect(self, penalty)
        if switch.private_rows == 0:
            return self._public(x, *others, **kwargs)
        first = switch.split(x.shape[0], branch.site.name)
        upper, lower = self._parted(x, first)
        public = self._public(upper, *others, **kwargs)
        private = self._private(lower, scale, shift, *others, **kwargs)
        return torch.cat([public, private])

    def _public(self, *args: Any, **kwargs: Any) -> Tensor:
        """The host's forward, be it that of its class or one that was set on the object."""
        own = self.passport.own_methods.forward
        if own is not None:
            return cast(Tensor, own(self, *args, **kwargs))
        return cast(Tensor, super().forward(*args, **kwargs))

    def _private(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.passport.own_methods.forward is not None:
            # An adapter knows the class's forward, not this one.
            return PassportLayer.private_norm(self, x, *args, **kwargs)
        return self.private_norm(x, *args, **kwargs)

    def _parted(self, x: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """The rows of the public and of the private branch."""
        if self.writes_input:
            return x[:first], x[first:]
        # The gradient of one split is one concatenation; two slices fill with zeros twice.
        upper, lower = x.split_with_sizes([first, x.shape[0] - first])
        return upper, lower
