"""A check after surgery: a pass of each branch and a joint one, compared with the plain model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from passportize.errors import ExampleInputFailed, SurgeryError
from passportize.layers.layer import PassportLayer
from passportize.layers.model import branch, passport_layers, switch_of
from passportize.layers.rehearsal import rehearse, why_left_out
from passportize.layers.settling import refuse_wrong
from passportize.surgery.branches import put_in_branch, take_out_branch
from passportize.surgery.packed import call_of
from passportize.tracing.example_inputs import ExampleInputs
from passportize.utils.frozen import frozen_model, frozen_random_state
from passportize.utils.trees import tensors_in

__all__ = ["ProbeReport", "probe"]


@dataclass(frozen=True)
class ProbeReport:
    """What :func:`probe` saw.

    Attributes:
        called: Two-branch layers that ran, by name, in the order of their first call.
        silent: Those that did not: another object does their work, or the input takes a way
            around them.
        private_differs: Whether the private branch gives another output than the public one;
            None where the formulation has no private pass.
        joint: How a joint step gives the plain model's outputs, statistics and gradients in
            training mode, ``"doubled"`` or ``"separate"``; empty where that could not be tried or
            there is no private pass.
    """

    called: tuple[str, ...]
    silent: tuple[str, ...]
    private_differs: bool | None
    joint: str = ""

    def __str__(self) -> str:
        total = len(self.called) + len(self.silent)
        text = f"{len(self.called)} of {total} layers ran; public output as without passports"
        if self.silent:
            text += f"; silent: {', '.join(self.silent)}"
        if self.private_differs is not None:
            text += "; private output " + ("differs" if self.private_differs else "is the same")
        if self.joint:
            text += f"; a joint step as without passports ({self.joint})"
        return text


def probe(model: nn.Module, example_inputs: Any) -> ProbeReport:
    """Run a passportized model with and without its passports and compare; it is left as it was.

    A pass of each branch runs in eval mode, from the same random state, without gradients; and
    joint steps on a few samples in training mode, where the model runs in it.

    Args:
        model: A passportized model.
        example_inputs: As for :func:`passportize.passportize`; real tensors on the model's device.

    Raises:
        NotPassportized: The model carries no private branch.
        ExampleInputFailed: The model does not run on the input.
        SurgeryError: The public output is not that of the plain model, bit for bit, or the
            private one is not finite where the public one is; or a joint step differs from one of
            the plain model (``JointPassRefused``).
    """
    has_private = switch_of(model).config.has_private_pass
    inputs = ExampleInputs.of(example_inputs)
    layers = passport_layers(model)
    called: dict[str, None] = {}
    with branch(model, "public"), _watched(layers, called):
        public = _run(model, inputs)
    with _plain(layers):
        plain = _run(model, inputs)
    if not _same(public, plain):
        raise SurgeryError(
            f"{type(model).__name__}: the public output is not that of the plain model. If the "
            "model is random in eval mode in a way that torch's seed does not govern, this says "
            "nothing; otherwise please report it"
        )
    differs = None
    if has_private:
        with branch(model, "private"):
            private = _run(model, inputs)
        if _finite(public) and not _finite(private):
            raise SurgeryError(
                f"{type(model).__name__}: the private output is not finite; leave the norms whose "
                "input has no variance out with where="
            )
        differs = not _same(public, private)
    silent = tuple(name for name in layers if name not in called)
    joint = _joint_step(model, inputs) if has_private else ""
    return ProbeReport(tuple(called), silent, differs, joint)


def _joint_step(model: nn.Module, inputs: ExampleInputs) -> str:
    """Which passes a joint step takes that is as the plain model's; empty if it cannot be tried."""
    switch = switch_of(model)
    called = inputs if inputs.runner is None else call_of(model, inputs)
    if called is None or why_left_out(model):
        return ""
    separate = switch.config.passes == "separate"
    finding = rehearse(model, switch, (called.args, dict(called.kwargs)), separate)
    refuse_wrong(model, switch, finding)
    if finding.passes == "separate" and not separate:
        return f"separate, from the first training step on: {finding.reason}"
    return finding.passes


def _run(model: nn.Module, inputs: ExampleInputs) -> list[Tensor]:
    with torch.no_grad(), frozen_random_state(cuda=True), frozen_model(model, values=True):
        torch.manual_seed(0)
        model.eval()
        try:
            output = inputs.copy().call(model)
        except Exception as error:  # whatever the model raises
            raise ExampleInputFailed(
                f"{type(model).__name__} does not run on the example input: it raised "
                f"{type(error).__name__}: {error}. Pass inputs that the model runs on in eval mode"
            ) from error
    return list(tensors_in(output))


@contextmanager
def _watched(layers: dict[str, PassportLayer], called: dict[str, None]) -> Iterator[None]:
    handles = []
    for name, layer in layers.items():

        def note(module: nn.Module, args: Any, name: str = name) -> None:
            called.setdefault(name)

        handles.append(layer.register_forward_pre_hook(note))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _plain(layers: dict[str, PassportLayer]) -> Iterator[None]:
    """The plain model for the length of a ``with`` block; the branches keep what they hold."""
    branches = [(layer, layer.passport) for layer in layers.values()]
    for layer, _ in branches:
        take_out_branch(layer)
    try:
        yield
    finally:
        for norm, kept in branches:
            put_in_branch(norm, kept)


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(
        a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())
        for a, b in zip(one, other, strict=True)
    )


def _finite(tensors: list[Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)
