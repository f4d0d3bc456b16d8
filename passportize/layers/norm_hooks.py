"""Hooks that a rehearsal puts on norms: to disturb what they give, to ask whether keys matter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from passportize.layers.layer import PassportLayer
from passportize.layers.switch import Pass, Switch

__all__ = ["disturb_norms", "watch_keys"]


def _layers(root: nn.Module) -> Iterator[PassportLayer]:
    for module in root.modules():
        if isinstance(module, PassportLayer):
            yield module


def disturb_norms(root: nn.Module, precision: float) -> None:
    """Add to the output of every norm what rounding could.

    Args:
        root: The passportized model.
        precision: Relative error of one operation.
    """

    def add(module: nn.Module, args: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return None
        size = output.detach().float().square().mean().sqrt() * 4 * precision
        # As good as random, and nothing is drawn.
        noise = torch.arange(output.numel(), device=output.device).mul_(7919).sin()
        return output + (noise.view(output.shape) * size).to(output.dtype)

    for layer in _layers(root):
        layer.register_forward_hook(add)


def watch_keys(root: nn.Module, switch: Switch, unkeyed: dict[str, bool]) -> None:
    """Note in private passes which bound norms give the same with other private factors.

    Args:
        root: The passportized model.
        switch: Its switch.
        unkeyed: Takes the answers, by name of the site.
    """
    keyed: set[tuple[type[nn.Module], bool]] = set()

    def look(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        assert isinstance(layer, PassportLayer)
        kind = type(layer), layer.passport.own_methods.forward is None
        if kind in keyed or switch.effective() is not Pass.PRIVATE or not args or not output.any():
            return
        scale, shift, _ = layer.private_factors(args[0])
        if scale is None:
            return
        moved = None if shift is None else shift + 1
        with torch.no_grad():
            other = layer._private(args[0], scale * 2 + 1, moved, *args[1:], **kwargs)
        same = torch.equal(other, output)
        unkeyed[layer.passport.site.name] = same
        if not same and kind[1]:
            keyed.add(kind)  # one norm of a class speaks for the others

    for layer in _layers(root):
        if layer.passport.transforms and not layer.writes_input:
            layer.register_forward_hook(look, with_kwargs=True)
