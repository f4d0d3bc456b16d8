"""A joint step for loops that keep model and criterion to themselves.

Where a framework calls ``step(batch)`` and gets a loss back, nobody can give the criterion the
rows of both branches. So the step is taken twice: once through the public branch with the batch,
once through the private branch with the first samples of it. The second time leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from passportize.errors import BranchMisuse, InvalidArgument
from passportize.layers.batch import unlike_rows
from passportize.layers.joint_forward import private_share, weight_for
from passportize.layers.model import _mode, switch_of
from passportize.layers.second_pass import (
    copied_arguments,
    leaving_nothing_behind,
    note_writing,
)
from passportize.layers.switch import Pass, Switch
from passportize.training.loss import JointLoss, check_hooks
from passportize.utils.trees import map_tensors, tensors_in

__all__ = ["joint_step"]

Step = Callable[[Any], Tensor | None]


def joint_step(
    model: nn.Module,
    step: Step,
    batch: Any,
    *,
    within: nn.Module | None = None,
    private_step: Step | None = None,
) -> JointLoss | None:
    """The joint loss of a step that calls the model itself.

    >>> import torch
    >>> import passportize as pp
    >>> model = nn.Sequential(nn.Linear(8, 64), nn.LayerNorm(64), nn.Linear(64, 4))
    >>> batch = torch.randn(32, 8), torch.randint(4, (32,))
    >>> model = pp.passportize(model, pp.Passport.generate("Acme"), example_inputs=batch[0])
    >>> def step(batch):
    ...     inputs, labels = batch
    ...     return nn.functional.cross_entropy(model(inputs), labels)
    >>> loss = joint_step(model, step, batch)
    >>> loss.total.backward()

    Args:
        model: A passportized model in training mode.
        step: ``step(batch) -> loss``, a scalar; calls ``model`` itself, once or several times, or a
            wrapper of it. None skips the step.
        batch: What it is called with. The private branch gets the first samples where every tensor
            of it has one row for each sample, else the whole batch.
        within: The module whose buffers and attributes the private pass leaves alone, where that is
            more than the model.
        private_step: Another function for the private pass, by default ``step``.

    Returns:
        The parts; ``output`` and ``private_output`` are None, since nobody but the step saw them.
        None if the step was skipped.

    Raises:
        NotPassportized: The model carries no private branch.
        BranchMisuse: The step never called the model, or it is in eval mode; the batch cannot be
            copied.
        InvalidArgument: The step returned no scalar.
        PassportLocked: The private branch was loaded without its secret.
    """
    switch = switch_of(model)
    check_hooks(model)
    within = model if within is None else within
    part, weight = _private_part(switch, batch)
    switch.deferred = []
    try:
        note_writing(within, switch)
        with _mode(model, Pass.JOINT):
            public = step(batch)
        note_writing(within, switch)
        if public is None:
            return None
        _check_scalar(public)
        if not switch.deferred:
            raise BranchMisuse(
                f"the step never called {type(model).__name__} in training mode as a whole, so "
                "nothing of it is trained jointly: call model(inputs) and not a method of it, and "
                "leave it in training mode"
            )
        sign = switch.deferred[0].to(public.device)
        private = None
        if switch.private_due:
            with leaving_nothing_behind(within, switch), _mode(model, Pass.PRIVATE):
                private = (private_step or step)(part)
    finally:
        switch.deferred = None
    total = public + sign
    if private is not None:
        _check_scalar(private)
        total = total + weight * private.to(public.device)
    return JointLoss(total, public, private, sign, None, None)


def _private_part(switch: Switch, batch: Any) -> tuple[Any, float]:
    """A copy of the samples for the private branch, and what its loss counts for.

    A copy, since a step may write into its batch, and many take entries out of a dictionary.
    """
    config = switch.config
    if not config.has_private_pass:
        return None, 0.0
    rows = next((len(tensor) for tensor in tensors_in(batch) if tensor.dim()), 0)
    share = private_share(switch, rows)
    if rows == 0 or share == rows or config.passes == "separate" or unlike_rows(batch, rows):
        (copied,), _ = copied_arguments(((batch,), {}))
        return copied, config.private_weight
    cut = map_tensors(lambda tensor: tensor[:share].clone() if tensor.dim() else tensor, batch)
    return cut, weight_for(config.private_weight, rows, share)


def _check_scalar(loss: Any) -> None:
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return
    kind = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
    raise InvalidArgument(f"the step must return one number, not {kind}; take its mean")
