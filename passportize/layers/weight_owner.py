"""Layers that carry bits in their own weight, for models without any norm.

There is no second branch: the forward is the host's, and only the sign loss is added.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from passportize.layers.derived import MadeOnDemand, make_class
from passportize.layers.layer import PassportLayer
from passportize.layers.switch import Pass

__all__ = ["OWN_RULE", "WeightOwner", "weight_owner_class"]

OWN_RULE = "own"
"""Rule of an :class:`~passportize.signature.site.Anchor` that is the layer's own weight."""


class WeightOwner(MadeOnDemand, PassportLayer):
    """A conv or linear layer whose rows answer to the passport."""

    scale_name = ""
    shift_name = ""

    @classmethod
    def mixes_samples(cls, norm: nn.Module) -> bool:
        """Never."""
        return False

    def private_factors(
        self, like: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """No factors, only the penalty."""
        return None, None, self.passport(None, None)[2]

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The host's forward; in joint training the penalty is collected."""
        switch = self.passport.switch
        gathered = self.passport.site.name in switch.gathered
        if switch.effective() is Pass.JOINT and switch.sign_due and not gathered:
            switch.collect(self, self.private_factors()[2])
        # Past PassportLayer, which would run a second branch.
        return cast(Tensor, super(PassportLayer, self).forward(*args, **kwargs))


def weight_owner_class(host_class: type[nn.Module]) -> type[WeightOwner]:
    """The class that a conv or linear layer of some class has while it is passportized."""
    return make_class(WeightOwner, host_class)
