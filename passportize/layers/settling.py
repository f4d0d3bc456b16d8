"""Whether a model takes one pass or two in a joint step: asked of a rehearsal, once."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import nn

from passportize.errors import JointPassRefused
from passportize.layers.rehearsal import Finding, rehearse, structure_of, why_left_out
from passportize.layers.rehearsed_pass import Arguments
from passportize.layers.switch import Switch

__all__ = ["refuse_wrong", "settle_passes"]

_logger = logging.getLogger(__name__)


def settle_passes(
    root: nn.Module, switch: Switch, arguments: Arguments, example: bool = False
) -> None:
    """Rehearse joint passes with arguments of this structure, if that was not done before.

    Args:
        root: The passportized model.
        switch: Its switch; what was found is written there.
        arguments: Positional and keyword arguments of one call.
        example: Whether they come from an example. What that leaves open is asked of the first
            training step.

    Raises:
        JointPassRefused: One pass was asked for and is wrong, or two passes are wrong as well, or
            the private branch does not depend on the passport.
    """
    if torch.compiler.is_compiling() or switch.rehearsing or not switch.check:
        return
    if not switch.config.has_private_pass or switch.config.passes == "separate":
        return
    structure = structure_of(arguments)
    if structure in switch.rehearsed:
        return
    name = type(root).__name__
    left_out = why_left_out(root)
    if left_out:
        _logger.info("%s: its joint pass is not checked: %s", name, left_out)
        switch.check = False
        return
    finding = rehearse(root, switch, arguments)
    if finding.passes or not example:
        switch.rehearsed |= {structure}
    if not finding.passes:
        when = "the first training step will tell" if example else "it goes unchecked"
        _logger.info("%s: its joint pass could not be checked: %s; %s", name, finding.reason, when)
        return
    refuse_wrong(root, switch, finding)
    if finding.passes == "separate":
        _logger.info("%s: %s; passes='separate'", name, finding.reason)
        switch.config = replace(switch.config, passes="separate")
        switch.reason = finding.reason
    switch.fixed |= finding.fixed


def refuse_wrong(root: nn.Module, switch: Switch, finding: Finding) -> None:
    """Raise JointPassRefused where a rehearsal found that a model cannot be trained as asked."""
    name = type(root).__name__
    if finding.error:
        raise JointPassRefused(
            f"{name}: no joint step gives what the plain model gives. "
            + (f"One pass: {finding.reason}. " if finding.reason else "")
            + f"{finding.error[:1].upper()}{finding.error[1:]}. Use the "
            "'signature' preset, which needs no private pass, or check=False"
        )
    asked = switch.config.passes == "doubled" and not switch.automatic
    if finding.passes == "separate" and asked:
        raise JointPassRefused(
            f"{name}: samples cannot be appended to a batch (passes='doubled'): {finding.reason}. "
            "Leave passes= out or set passes='separate'"
        )
    if finding.unkeyed:
        raise JointPassRefused(
            f"{name}: the private branch does not depend on the passport in "
            f"{', '.join(finding.unkeyed[:5])}: these norms ignore the scale and shift that they "
            "are given. Leave them out with where=, or register an adapter, see docs/adapters.md"
        )
