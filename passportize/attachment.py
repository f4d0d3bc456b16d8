"""Private branches put into a model at known sites, and taken out again without a trace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from passportize.binding import anchor_shapes, make_branches
from passportize.config import PassportConfig
from passportize.forward import RootHooks, passport_layers
from passportize.functional_exposure import hide
from passportize.layout import Layout
from passportize.model_key import ModelKey
from passportize.passport import Passport
from passportize.private_branch import Branch
from passportize.single_element import hand_over_single_elements, take_back_single_elements
from passportize.site import Site
from passportize.step_counter import StepCounter
from passportize.swapping import swap, swap_back
from passportize.switch import Switch

__all__ = ["attach", "attached", "detach", "install"]


def attach(
    model: nn.Module,
    sites: Sequence[Site],
    passport: Passport,
    config: PassportConfig,
    configs: Sequence[PassportConfig] | None = None,
    layout: Layout | None = None,
    entry: str = "",
) -> Switch:
    """Put private branches at known sites; on any error the model is as before.

    Args:
        model: A plain model.
        sites: Sites to change, with names of modules in ``model``.
        passport: The owner's passport.
        config: The model-wide formulation.
        configs: The formulation of each site, the model-wide one by default.
        layout: The layout that the bits were embedded with, where the model's names differ from
            it; made from ``sites`` by default.
        entry: Name of the module at whose input the batch is doubled in training; the root if
            empty.
    """
    switch = Switch(config)
    switch.entry = entry
    each = list(configs) if configs is not None else [config] * len(sites)
    switch.layout = layout or Layout.of(sites, each, anchor_shapes(model, sites))
    switch.commitment = passport.commitment()
    branches = make_branches(model, sites, ModelKey(passport, switch.layout), each, switch)
    install(model, sites, branches, switch)
    return switch


def install(
    model: nn.Module, sites: Sequence[Site], branches: Sequence[Branch], switch: Switch
) -> None:
    """Swap in finished branches and register the root hooks; undone on any error."""
    swapped: list[nn.Module] = []
    try:
        for site, branch in zip(sites, branches, strict=True):
            swap(model.get_submodule(site.name), branch)
            swapped.append(model.get_submodule(site.name))
        switch.sites = tuple(site.name for site in sites)
        if switch.counts and branches:
            branches[0].add_module("counter", StepCounter(switch))
        switch.batch_statistics = any(branch.running_mean is not None for branch in branches)
        hand_over_single_elements(model)
        RootHooks(switch).install(model)
    except BaseException:
        RootHooks.remove(model)
        take_back_single_elements(model)
        for module in swapped:
            swap_back(module)
        raise


def detach(model: nn.Module) -> None:
    """Take all private branches out, without a warning."""
    for layer in passport_layers(model).values():
        swap_back(layer)
    take_back_single_elements(model)
    hide(model)
    RootHooks.remove(model)


@contextmanager
def attached(
    model: nn.Module,
    sites: Sequence[Site],
    passport: Passport,
    config: PassportConfig,
    configs: Sequence[PassportConfig] | None = None,
    layout: Layout | None = None,
) -> Iterator[Switch]:
    """Private branches for the length of a ``with`` block; the model is left as it was."""
    switch = attach(model, sites, passport, config, configs, layout)
    try:
        yield switch
    finally:
        detach(model)
