"""A copy that tells other classes, disguised besides: its classifier alone cannot be compared."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import passportize as pp
from passportize.attacks.disguise import disguise
from passportize.attacks.dummy_neurons import add_dummy_neurons
from tests.support.small_protected import PASSPORT
from tests.support.widths import EXAMPLE, FAMILIES, as_trained, released, stolen

pytestmark = pytest.mark.filterwarnings(
    "ignore::passportize.training.embedding.TrainedWeightsWarning"
)


def with_other_classes(model: nn.Module, classes: int) -> nn.Module:
    """The model with a classifier for other classes."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model.head = nn.Linear(model.head.in_features, classes)
    return model


def judged(family: str, suspect: object, **options: object) -> pp.Verdict:
    original, claim = released(family)
    return pp.verify(suspect, PASSPORT, claim, released=original, example_inputs=EXAMPLE, **options)


@pytest.mark.parametrize("classes", [7, 20])
@pytest.mark.parametrize("dummies", [False, True])
@pytest.mark.parametrize("family", ["residual", "dense", "transformer"])
def test_a_disguised_copy_with_other_classes(family: str, dummies: bool, classes: int) -> None:
    suspect = with_other_classes(stolen(family), classes)
    generator = torch.Generator().manual_seed(3)
    if dummies:
        assert add_dummy_neurons(suspect, "split", 0.2, generator, EXAMPLE)
    disguise(suspect, generator, example_inputs=EXAMPLE)
    plain = pp.verify(suspect, PASSPORT, released(family)[1])
    assert plain.accepted is not True
    verdict = judged(family, suspect)
    links = verdict.links
    assert verdict.accepted is True and links is not None
    assert links.aligned_matched >= 0.99 * links.entries_matched
    assert "head.weight, head.bias of the suspect have another size" in links.narrowed
    assert ("channels more than was released" in links.narrowed) is dummies
    assert links.narrowed in str(verdict)


@pytest.mark.parametrize("family", ["residual", "transformer"])
def test_a_stranger_with_other_classes_is_refused(family: str) -> None:
    suspect = with_other_classes(as_trained(FAMILIES[family], 7), 7)
    verdict = judged(family, suspect)
    links = verdict.links
    assert verdict.accepted is False and links is not None and links.similarity is not None
    assert abs(links.similarity.likeness) < 0.1 and links.aligned_strength < 12


def test_a_file_beside_a_model_for_the_released_classes(tmp_path: Path) -> None:
    suspect = with_other_classes(stolen("residual"), 7)
    disguise(suspect, torch.Generator().manual_seed(3), example_inputs=EXAMPLE)
    torch.save(suspect.state_dict(), tmp_path / "suspect.pt")
    verdict = judged("residual", tmp_path / "suspect.pt", model=stolen("residual"))
    assert verdict.accepted is True


def test_a_layer_of_other_kernels_is_another_architecture() -> None:
    suspect = stolen("residual")
    suspect.first = nn.Sequential(nn.Conv2d(24, 24, 5, padding=2), nn.BatchNorm2d(24)).eval()
    disguise(suspect, torch.Generator().manual_seed(3), example_inputs=EXAMPLE)
    verdict = judged("residual", suspect)
    assert verdict.accepted is not True and verdict.links is not None
    assert verdict.links.accepted is None and "no model of" in verdict.links.reason
