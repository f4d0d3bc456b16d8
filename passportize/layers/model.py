"""A passportized model as a whole: its two-branch layers, their switch, one branch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from passportize.errors import InvalidArgument, NotPassportized
from passportize.layers.layer import PassportLayer
from passportize.layers.switch import Pass, Switch
from passportize.utils.fused_kernels import fused_kernels_off

__all__ = ["branch", "is_passportized", "passport_layers", "switch_of"]


def passport_layers(model: nn.Module) -> dict[str, PassportLayer]:
    """All two-branch layers by dotted name, in registration order."""
    return {
        name: module for name, module in model.named_modules() if isinstance(module, PassportLayer)
    }


def is_passportized(model: nn.Module) -> bool:
    """Whether a model carries private branches."""
    return any(isinstance(module, PassportLayer) for module in model.modules())


def switch_of(model: nn.Module) -> Switch:
    """The switch of a passportized model, also through DDP or torch.compile.

    Raises:
        NotPassportized: The model carries no private branch.
    """
    for module in model.modules():
        if isinstance(module, PassportLayer):
            return module.passport.switch
    raise NotPassportized(
        f"{type(model).__name__} carries no private branch; call passportize(model, passport) first"
    )


@contextmanager
def branch(model: nn.Module, which: str) -> Iterator[nn.Module]:
    """Run one branch alone within a ``with`` block.

    >>> import torch
    >>> import passportize as pp
    >>> model = nn.Sequential(nn.Linear(8, 64), nn.LayerNorm(64))
    >>> inputs = torch.randn(2, 8)
    >>> model = pp.passportize(model, pp.Passport.generate("Acme"), example_inputs=inputs)
    >>> with branch(model, "private"):
    ...     private = model(inputs)
    >>> torch.equal(private, model(inputs))
    False

    Args:
        model: A passportized model.
        which: ``"public"`` or ``"private"``.

    Raises:
        NotPassportized: The model carries no private branch.
        InvalidArgument: There is no such branch, or the formulation has no private one.
    """
    switch = switch_of(model)
    if which not in ("public", "private"):
        raise InvalidArgument(f"branch={which!r} does not exist; use 'public' or 'private'")
    if which == "private" and not switch.config.has_private_pass:
        raise InvalidArgument(
            "the 'signature' preset has no private branch to run: it embeds bits only"
        )
    with _mode(model, Pass(which)):
        yield model


@contextmanager
def _mode(model: nn.Module, mode: Pass) -> Iterator[None]:
    switch = switch_of(model)
    before = switch.mode
    with fused_kernels_off(mode is not Pass.PUBLIC):
        try:
            switch.mode = mode
            yield
        finally:
            switch.mode = before
