"""Whole channels are taken out of every group that can be resized, the weakest first."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from passportize.attacks import Means, run_attack
from passportize.attacks.prune_channels import prune_channels
from passportize.errors import InvalidArgument
from tests.support.widths import EXAMPLE, FAMILIES, as_trained


@pytest.mark.parametrize("family", ["residual", "dense", "inverted", "transformer"])
def test_the_network_gets_narrower_and_runs(family: str) -> None:
    model = as_trained(FAMILIES[family], 0)
    before = sum(parameter.numel() for parameter in model.parameters())
    outcome = run_attack("prune-channels", model, Means(example_inputs=EXAMPLE), share=0.25)
    assert outcome.figures["channels gone"] >= 36
    assert sum(parameter.numel() for parameter in outcome.model.parameters()) < 0.85 * before
    outcome.model.train()(EXAMPLE).sum().backward()


@torch.no_grad()
def test_the_weakest_go_first() -> None:
    model = as_trained(FAMILIES["residual"], 0)
    for channel in (3, 11):
        model.first[0].weight[channel] *= 1e-4
    wanted = model.first[0].weight[[c for c in range(24) if c not in (3, 11)]]
    prune_channels(model, 0.1, EXAMPLE)
    assert model.first[0].out_channels == model.second[0].in_channels == 22
    # What it reads was pruned as well.
    assert len(model.first[0].weight) == len(wanted)
    lengths = model.first[0].weight.flatten(1).norm(dim=1)
    assert float(lengths.min()) > 0.1


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_share_is_checked(share: float) -> None:
    with pytest.raises(InvalidArgument, match="prune-channels: share"):
        prune_channels(as_trained(FAMILIES["residual"], 0), share, EXAMPLE)


def test_nothing_to_take_out_is_said() -> None:
    with pytest.raises(InvalidArgument, match="no channels that could be taken out"):
        run_attack(
            "prune-channels",
            nn.Sequential(nn.Conv2d(3, 4, 3)).eval(),
            Means(example_inputs=EXAMPLE),
        )
