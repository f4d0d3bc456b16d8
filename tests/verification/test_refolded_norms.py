"""Norms that an exporter has folded into a disguised copy are put back as norms that do nothing."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

import passportize as pp
from passportize.attacks.disguise import disguise
from passportize.release.claim import Claim, claim_of
from passportize.surgery.branches import take_out_branches
from tests.support.small_protected import PASSPORT
from tests.support.widths import EXAMPLE, FAMILIES, as_trained, released, stolen

pytestmark = pytest.mark.filterwarnings(
    "ignore::passportize.training.embedding.TrainedWeightsWarning"
)


def folded(model: nn.Module, keep: str = "") -> nn.Module:
    """Every BatchNorm right behind a convolution folded into it, in place."""
    before: tuple[nn.Module, str, nn.Module] | None = None
    for name, module in list(model.named_modules()):
        parent = model.get_submodule(name.rpartition(".")[0])
        key = name.rpartition(".")[2]
        if isinstance(module, nn.BatchNorm2d) and before is not None and name != keep:
            owner, own, convolution = before
            setattr(owner, own, fuse_conv_bn_eval(convolution, module))
            setattr(parent, key, nn.Identity())
        before = (parent, key, module) if isinstance(module, nn.Conv2d) else None
    return model


def judged(family: str, state: dict[str, Tensor], model: nn.Module | None = None) -> pp.Verdict:
    original, claim = released(family)
    model = model if model is not None else as_trained(FAMILIES[family], 9)
    return pp.verify(state, PASSPORT, claim, model=model, released=original, example_inputs=EXAMPLE)


@pytest.mark.parametrize("family", ["residual", "inverted"])
def test_disguised_and_folded(family: str) -> None:
    suspect = stolen(family)
    disguise(suspect, torch.Generator().manual_seed(3), example_inputs=EXAMPLE)
    with torch.no_grad():
        before = suspect(EXAMPLE)
        after = folded(suspect)(EXAMPLE)
    assert torch.allclose(before, after, atol=1e-3 * float(before.abs().max()))
    state = suspect.state_dict()
    assert not any("running_mean" in name for name in state)
    model = as_trained(FAMILIES[family], 9)
    kept = copy.deepcopy(model.state_dict())
    verdict = judged(family, state, model)
    assert verdict.accepted is True and verdict.links is not None
    # Lengths of rows behind a mixed space are not the scales of channels; a few bits go.
    assert verdict.links.aligned_matched >= 0.95 * verdict.links.entries_matched
    assert any("folded into the layers before them" in note for note in verdict.notes)
    assert all(torch.equal(kept[name], value) for name, value in model.state_dict().items())


def test_what_is_opened_computes_what_the_suspect_does() -> None:
    suspect = folded(stolen("residual"))
    opened = pp.verify(
        suspect.state_dict(),
        PASSPORT,
        released("residual")[1],
        [(EXAMPLE, suspect(EXAMPLE).argmax(1))],
        model=as_trained(FAMILIES["residual"], 9),
    )
    assert opened.public_accuracy == 100.0


def test_only_some_norms_are_folded() -> None:
    suspect = stolen("residual")
    disguise(suspect, torch.Generator().manual_seed(3), example_inputs=EXAMPLE)
    assert judged("residual", folded(suspect, keep="third.1").state_dict()).accepted is True


def test_strangers_with_folded_norms_are_refused() -> None:
    state = folded(as_trained(FAMILIES["residual"], 7)).state_dict()
    verdict = judged("residual", state)
    assert verdict.accepted is False and verdict.links is not None
    assert verdict.links.similarity is not None and verdict.links.aligned_strength < 12


def test_without_a_bias_nothing_is_made_up() -> None:
    state = folded(stolen("residual")).state_dict()
    without = {name: value for name, value in state.items() if name != "third.0.bias"}
    verdict = judged("residual", without)
    assert any("lacks" in note and "third.1" in note for note in verdict.notes)


def test_a_network_of_timm() -> None:
    model = as_trained(lambda: timm.create_model("resnet10t", num_classes=10), 0)
    pp.passportize(model, PASSPORT, config=pp.PassportConfig.signature())
    pp.embed_signature(model)
    claim: Claim = claim_of(model)
    take_out_branches(model)
    suspect = copy.deepcopy(model)
    disguise(suspect, torch.Generator().manual_seed(3))
    state = folded(suspect).state_dict()
    other = timm.create_model("resnet10t", num_classes=10)
    verdict = pp.verify(state, PASSPORT, claim, model=other, released=model)
    assert verdict.accepted is True and verdict.links is not None
    assert verdict.links.aligned_matched >= 0.99 * verdict.links.entries_matched
