"""Layers that carry bits in their own weight, for models without any norm.

There is no second branch: the forward is the host's, and only the sign loss is added. Any conv or
linear class will do, so the class that a layer gets is made from its host's when it is needed.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable
from typing import Any, cast

from torch import Tensor, nn

from passportize.layer import PassportLayer
from passportize.switch import Pass

__all__ = ["OWN_RULE", "WeightOwner", "weight_owner_class"]

OWN_RULE = "own"
"""Rule of an :class:`~passportize.site.Anchor` that is the layer's own weight."""


class WeightOwner(PassportLayer):
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
        if switch.effective() is Pass.JOINT:
            switch.collect(self, self.private_factors()[2])
        # Past PassportLayer, which would run a second branch.
        return cast(Tensor, super(PassportLayer, self).forward(*args, **kwargs))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """By the host's class: this one is made on demand and has no place of its own."""
        reduced = super().__reduce_ex__(protocol)
        return (_blank, (type(self).host_class,), *reduced[2:])


def weight_owner_class(host_class: type[nn.Module]) -> type[WeightOwner]:
    """The class that a conv or linear layer of some class has while it is passportized."""
    return _made(cast(Hashable, host_class))


@functools.cache
def _made(host_class: Any) -> type[WeightOwner]:
    return type(
        f"Passport{host_class.__name__}",
        (WeightOwner, host_class),
        {
            "__module__": __name__,
            "__doc__": f":class:`{host_class.__name__}` that carries bits in its own weight.",
            "host_class": host_class,
        },
    )


def _blank(host_class: type[nn.Module]) -> WeightOwner:
    owner_class = weight_owner_class(host_class)
    return owner_class.__new__(owner_class)
