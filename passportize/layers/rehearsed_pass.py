"""One forward and backward pass that leaves nothing behind."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from passportize.layers.layer import PassportLayer
from passportize.layers.switch import Pass, Switch
from passportize.utils.draws import AlikeDraws
from passportize.utils.records import parts_of
from passportize.utils.trees import Path, copied, leaves_in

__all__ = ["Arguments", "Record", "needs_draws", "run_once", "tree_record"]

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass
class Record:
    """What a pass gave.

    Attributes:
        output: What the model returned.
        leaves: Tensors and numbers of the public output, by path.
        buffers: Buffers of the host behind the pass.
        gradients: Of a random function of the public output, by parameter.
    """

    output: Any
    leaves: dict[Path, Any] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)


def tree_record(output: Any) -> Record:
    """A record of an output alone."""
    return Record(output, {path: _detached(leaf) for path, leaf in leaves_in(output)})


def _detached(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def run_once(
    root: nn.Module,
    switch: Switch,
    mode: Pass,
    arguments: Arguments,
    draws: AlikeDraws | None,
    put_back: Callable[[], None],
    gradients: bool = True,
    around: Callable[[], Any] | None = None,
) -> Record:
    """Run one pass in training mode; the model is put back, but for values of parameters.

    Args:
        root: The passportized model.
        switch: Its switch.
        mode: Which pass.
        arguments: What to call it with; left as it is.
        draws: How random numbers are drawn; None where none are, which saves a third of the time.
        put_back: Puts the model back, with values; ``frozen_model`` gives it.
        gradients: Whether to take gradients of the public output.
        around: Puts hooks in; ``put_back`` takes them out again.
    """
    args, kwargs = copied(arguments)
    before = switch.mode
    try:
        with torch.set_grad_enabled(gradients):
            if not root.training:
                root.train()
            if around is not None:
                around()
            _seed()
            switch.mode = mode
            with draws or nullcontext():
                output = root(*args, **kwargs)
            public = output.public if mode is Pass.JOINT else output
            record = tree_record(public)
            record.output = output
            record.buffers = {name: item.clone() for name, item in _host_buffers(root)}
            if gradients:
                # Checkpointing draws again in the backward pass what was drawn before.
                with draws if draws and needs_draws(draws) else nullcontext():
                    record.gradients = _gradients(root, public)
        return record
    finally:
        switch.mode = before
        put_back()


def needs_draws(before: AlikeDraws) -> bool:
    """Whether what follows a pass may draw numbers as well, or talk to other processes."""
    dist = torch.distributed
    return before.drew or (dist.is_available() and dist.is_initialized())


def _seed() -> None:
    torch.manual_seed(0)
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)


def _host_buffers(root: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The buffers that the plain model has as well; of a sparse one indices and values."""
    ours = {
        id(buffer)
        for module in root.modules()
        if isinstance(module, PassportLayer)
        for buffer in module.passport.buffers()
    }
    for name, buffer in root.named_buffers():
        if id(buffer) not in ours:
            for place, part in enumerate(parts_of(buffer)):
                yield (f"{name}, part {place}" if place else name), part


def _gradients(root: nn.Module, output: Any) -> dict[str, Tensor]:
    """Gradients of the host's parameters of a random linear function of the output."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    terms = []
    for _, leaf in leaves_in(output):
        if isinstance(leaf, Tensor) and leaf.requires_grad and leaf.is_floating_point():
            factor = torch.randn(leaf.shape, generator=generator, device="cpu")
            terms.append((leaf * factor.to(leaf.device, leaf.dtype)).sum().float())
    ours = {
        id(parameter)
        for module in root.modules()
        if isinstance(module, PassportLayer)
        for parameter in module.passport.parameters()
    }
    # Hooks of others on gradients are not for us to call.
    named = {
        name: parameter
        for name, parameter in root.named_parameters()
        if parameter.requires_grad and id(parameter) not in ours and not parameter._backward_hooks
    }
    if not terms or not named:
        return {}
    total = torch.stack([term.to(terms[0].device) for term in terms]).sum()
    try:
        # Never backward(): it would tell DDP's reducer and the hooks of others.
        found = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    except RuntimeError:  # reentrant checkpointing knows backward() only
        return {}
    return {
        name: gradient.coalesce().to_dense() if gradient.is_sparse else gradient
        for name, gradient in zip(named, found, strict=True)
        if gradient is not None
    }
