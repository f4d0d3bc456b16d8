"""What happened to a model after surgery is noticed, wherever somebody asks for its bits."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import passportize as pp
from passportize.errors import BranchLost
from passportize.layers.model import switch_of
from passportize.release.claim import claim_of

PASSPORT = pp.Passport.generate("Integrity", date="2026-11-28", secret=bytes(range(32)))
WIDTH = 32


def protected() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(16, WIDTH), nn.LayerNorm(WIDTH), nn.GELU(), nn.Linear(WIDTH, 5), nn.LayerNorm(5)
    )
    return pp.passportize(model, PASSPORT, example_inputs=inputs())


def inputs() -> Tensor:
    return torch.randn(16, 16, generator=torch.Generator().manual_seed(1))


def step(model: nn.Module) -> pp.JointLoss:
    return pp.joint_loss(model.train(), inputs(), torch.arange(16) % 5, F.cross_entropy)


def _replace_anchor(model: nn.Sequential) -> None:
    model[0] = nn.Linear(16, WIDTH)


def _replace_norm(model: nn.Sequential) -> None:
    model[1] = nn.LayerNorm(WIDTH)


def _quantise(model: nn.Sequential) -> None:
    torch.ao.quantization.quantize_dynamic(model, inplace=True)


def _copy_inside(model: nn.Sequential) -> None:
    model[1].register_module("saved_copy", copy.deepcopy(model[1]))


def _share(model: nn.Sequential) -> None:
    model.append(copy.copy(model[1]))


CHANGES: dict[str, tuple[Callable[[nn.Sequential], None], str]] = {
    "anchor replaced": (_replace_anchor, "0.weight.* was replaced after passportize"),
    "norm replaced": (_replace_norm, "1 lost its private branch"),
    "quantised": (_quantise, "0.weight.* was replaced after passportize"),
    "copied inside": (_copy_inside, r"copies of two-branch layers.* 1.saved_copy \(of 1\)"),
    "copied beside": (_share, r"copies of two-branch layers.* 5 \(of 1\)"),
}


@pytest.mark.filterwarnings("ignore:.*quanti[sz]")
@pytest.mark.parametrize("ask", [step, claim_of, pp.embed_signature], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", CHANGES)
def test_layers_replaced_or_copied(name: str, ask: Callable[[nn.Module], object]) -> None:
    change, message = CHANGES[name]
    model = protected()
    ask(model)
    change(model)
    with pytest.raises(BranchLost, match=message):
        ask(model)


def _narrow(model: nn.Sequential) -> None:
    model[0].weight = nn.Parameter(model[0].weight.detach()[:, :12])


def _widen(model: nn.Sequential) -> None:
    more = torch.cat([model[0].weight.detach(), torch.zeros(WIDTH, 16)], 1)
    model[0].weight = nn.Parameter(more)


@pytest.mark.parametrize("change", [_narrow, _widen])
def test_anchor_of_another_size(change: Callable[[nn.Sequential], None]) -> None:
    model = protected()
    change(model)
    with pytest.raises(BranchLost, match=r"had the shape .32, 16. when passportize was called"):
        claim_of(model)


def test_rows_too_short_for_their_vectors() -> None:
    model = protected()
    _narrow(model)
    with pytest.raises(BranchLost, match="do not fit their vectors"):
        step(model)


def test_a_copy_of_the_whole_model_is_a_model_of_its_own() -> None:
    model = protected()
    twin = copy.deepcopy(model)
    assert switch_of(twin) is not switch_of(model)
    for one in (model, twin):
        step(one)
        assert claim_of(one).bits == WIDTH + 5
