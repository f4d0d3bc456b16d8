"""Norms that send a batch of one row around the norm that they hold.

``torch_geometric.nn.BatchNorm(allow_single_element=True)`` normalises a single row, which has no
variance, with running statistics. It calls the functional norm itself, so the layer inside would
never see the row. While the model is passportized the wrapper hands it over, with statistics at
rest: each branch then uses its own, and the public numbers are the same to the last bit.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from passportize.layers.derived import MadeOnDemand, class_before, make_class
from passportize.layers.layer import PassportLayer
from passportize.utils.foreign import PYG_BATCH_NORM

__all__ = ["SingleElement", "put_in_single_elements", "take_out_single_elements"]


class SingleElement(MadeOnDemand):
    """The wrapper while the norm inside has a private branch."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The host's forward; where a branch has one row, the layer inside in eval mode."""
        layer = self.module
        if not isinstance(layer, PassportLayer):
            return cast(Tensor, super().forward(x, *args, **kwargs))
        if not layer.passport.switch.is_single(x.shape[0]):
            return cast(Tensor, layer(x))
        training = layer.training
        layer.training = False
        try:
            return cast(Tensor, layer(x))
        finally:
            layer.training = training


def put_in_single_elements(model: nn.Module) -> None:
    """Change the class of every such wrapper around a two-branch layer, in place.

    PyTorch Geometric need not be installed: its class is told by name.
    """
    for module in list(model.modules()):
        kind = type(module)
        if (
            (kind.__module__, kind.__name__) == PYG_BATCH_NORM
            and getattr(module, "allow_single_element", False)
            and isinstance(module.module, PassportLayer)
        ):
            module.__class__ = make_class(SingleElement, kind)


def take_out_single_elements(model: nn.Module) -> None:
    """Undo :func:`put_in_single_elements`; nothing is left of it."""
    for module in list(model.modules()):
        if isinstance(module, SingleElement):
            module.__class__ = class_before(type(module))  # type: ignore[assignment]
