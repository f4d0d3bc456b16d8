"""One pass or two in a joint step: what the structure says, what an example says, what it costs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from passportize.config import PassportConfig
from passportize.errors import JointPassRefused
from passportize.layers.settling import settle_passes
from passportize.layers.switch import Switch
from passportize.passport.passport import Passport
from passportize.signature.site import Role, Site
from passportize.surgery.branches import branches_put_in, count_steps
from passportize.surgery.packed import call_of, packed_module
from passportize.tracing.example_inputs import ExampleInputs

__all__ = ["first_passes", "passes_note", "settle_on_example"]

_logger = logging.getLogger(__name__)


def first_passes(model: nn.Module, config: PassportConfig) -> tuple[PassportConfig, bool]:
    """Which passes to begin with, and whether that is left to a rehearsal.

    Packed graphs cannot be appended to each other, so they get two.
    """
    if config.passes != "automatic":
        return config, False
    packed = packed_module(model) if config.has_private_pass else None
    if packed is None:
        return replace(config, passes="doubled"), True
    name = type(model).__name__
    _logger.info("%s: %s works on packed graphs; passes='separate'", name, packed or "the model")
    return replace(config, passes="separate"), True


def settle_on_example(model: nn.Module, switch: Switch, example_inputs: Any) -> None:
    """Try the joint pass on an example, where there is one that the model runs on.

    Args:
        model: The passportized model.
        switch: Its switch.
        example_inputs: As ``passportize`` takes them, or None.

    Raises:
        JointPassRefused: Neither way is right, or the one that was asked for is not.
    """
    if example_inputs is None or switch.config.passes == "separate" or not switch.check:
        return
    inputs = ExampleInputs.of(example_inputs)
    if not inputs.is_real or any(parameter.is_meta for parameter in model.parameters()):
        return
    if inputs.runner is not None:
        called = call_of(model, inputs)
        if called is None:
            return
        inputs = called
    settle_passes(model, switch, (inputs.args, dict(inputs.kwargs)), example=True)
    count_steps(model, switch)


def passes_note(
    model: nn.Module, sites: Sequence[Site], config: PassportConfig, example_inputs: Any
) -> tuple[str, str]:
    """Which passes a joint step will take (empty if none or unknown), and a sentence about it.

    Args:
        model: A plain model; left as it was.
        sites: Its sites.
        config: The formulation.
        example_inputs: As ``passportize`` takes them, or None.
    """
    bound = [site for site in sites if site.role in (Role.BOUND, Role.STATISTICS)]
    if not config.has_private_pass or not bound:
        return "", ""
    asked, automatic = first_passes(model, config)
    tried, reason = False, "it works on packed graphs" if automatic else "as the config asks"
    passes = asked.passes
    if passes == "doubled":
        # A passport of nobody: only factors are asked for, not what they say.
        with branches_put_in(model, bound, Passport.generate("plan"), asked) as switch:
            switch.automatic = automatic
            try:
                settle_on_example(model, switch, example_inputs)
            except JointPassRefused as error:
                return "", f"joint steps are refused: {error}"
            passes, tried = switch.config.passes, bool(switch.rehearsed)
            reason = switch.reason
    if passes == "separate":
        period = replace(config, passes="separate").private_period
        often = "every joint step" if period == 1 else f"one joint step in {period}"
        return passes, f"{often} takes two passes, twice the cost of a plain one: {reason}"
    more = f"with {config.private_fraction:.0%} of the batch appended"
    note = f"a joint step takes one pass, {more} (8 samples at least for statistics of a batch)"
    if not tried:
        note += "; the first training step will try whether that is right, and take two if not"
    return passes, note
