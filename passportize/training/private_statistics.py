"""Private running statistics measured anew, as those of the public branch are after SWA."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from passportize.errors import InvalidArgument
from passportize.layers.integrity import check_layers
from passportize.layers.layer import PassportLayer
from passportize.layers.model import branch, passport_layers, switch_of
from passportize.layers.private_branch import has_statistics
from passportize.training.input_moments import inputs_of
from passportize.utils.frozen import frozen_random_state, in_eval_mode
from passportize.utils.trees import call_model, moved_inputs, place_of, tensors_in

__all__ = ["measure_private_statistics", "renew_statistics"]


def renew_statistics(model: nn.Module, loader: Iterable[Any]) -> int:
    """Measure the private running statistics of a passportized model anew, as plain means.

    For what :func:`torch.optim.swa_utils.update_bn` (or precise BN) does for the public ones: after
    weights were averaged, or loaded from elsewhere. Public statistics, weights, flags and random
    states stay as they are. A verdict does not depend on it, since whoever judges measures private
    statistics with data of their own; accuracies of the live private branch do.

    Args:
        model: A passportized model; may be inside ``AveragedModel`` or DDP.
        loader: Batches as the model is trained on: inputs, or pairs of inputs and labels, which are
            ignored. A tensor ``[batch, ...]``, a tuple of positional or a dict of keyword
            arguments. Read once; batches of one sample are left out.

    Returns:
        The number of batches.

    Raises:
        NotPassportized: The model carries no private branch.
        BranchLost: Layers were replaced, copied or patched after surgery.
        InvalidArgument: There is no private branch to run, or no batch. All is as before.
    """
    switch = switch_of(model)
    if not switch.config.has_private_pass:
        raise InvalidArgument(
            "renew_statistics: the 'signature' preset has no private branch, so no statistics"
        )
    check_layers(model, switch)
    kept = [
        (buffer, buffer.clone())
        for layer in _layers(model)
        for buffer in layer.passport.buffers(recurse=False)
    ]
    try:
        with torch.no_grad(), frozen_random_state(cuda=True), in_eval_mode(model):
            count = measure_private_statistics(model, (inputs_of(batch) for batch in loader))
        if not count and kept:
            raise InvalidArgument(
                "renew_statistics: the loader gave no batch of two or more samples"
            )
    except BaseException:
        for buffer, values in kept:
            buffer.copy_(values)
        raise
    return count


def measure_private_statistics(model: nn.Module, inputs: Iterable[Any]) -> int:
    """Start the private statistics of a model in eval mode anew and measure them.

    Norms that average in a way of their own, without a ``momentum``, go on from what they have.

    Args:
        model: A passportized model; its norms are in eval mode afterwards.
        inputs: Batches of inputs. Only read where norms keep statistics.

    Returns:
        The number of batches that were measured.
    """
    layers = _layers(model)
    if not layers:
        return 0
    momenta = [(layer, layer.momentum) for layer in layers if hasattr(layer, "momentum")]
    count = 0
    try:
        for layer in layers:
            layer.train()
        for layer, _ in momenta:
            # None: the plain mean over all batches.
            layer.momentum = None  # type: ignore[assignment]
            layer.passport.reset_statistics()
        place = place_of(model)
        with branch(model, "private"):
            for batch in inputs:
                moved = moved_inputs(batch, place)
                # One sample has no variance of its own in a norm that sees one value of each.
                if next((t.shape[0] for t in tensors_in(moved) if t.dim()), 2) > 1:
                    call_model(model, moved)
                    count += 1
    finally:
        for layer, momentum in momenta:
            layer.momentum = momentum
        for layer in layers:
            layer.eval()
    return count


def _layers(model: nn.Module) -> list[PassportLayer]:
    return [layer for layer in passport_layers(model).values() if has_statistics(layer)]
