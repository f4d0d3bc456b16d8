"""Every scheme of the bench protects, releases the plain model, and tells owner from stranger."""

from __future__ import annotations

import copy

import pytest
import torch

from passportize.errors import DegenerateSite, InvalidArgument, NoNormalization
from passportize.schemes import find_scheme, register_scheme, scheme_names
from tests.support.bench import EVE, OWNER, SCHEMES, SETTINGS, BenchNet, batches, released

EXAMPLE = torch.zeros(4, 1, 8, 8)


def test_the_names_are_known() -> None:
    assert set(SCHEMES) <= set(scheme_names())
    with pytest.raises(InvalidArgument, match="did you mean paper"):
        find_scheme("papers")
    with pytest.raises(InvalidArgument, match="scheme uchida"):
        find_scheme("uchida", bit=3)
    with pytest.raises(InvalidArgument, match="not a subclass"):
        register_scheme(BenchNet)


@pytest.mark.parametrize("name", SCHEMES)
def test_what_is_released_is_the_plain_model(name: str) -> None:
    release, plain = released(name), BenchNet()
    assert type(release.model) is BenchNet and not release.model.training
    assert list(release.model.state_dict()) == list(plain.state_dict())
    classes = [type(module) for module in release.model.modules()]
    assert classes == [type(module) for module in plain.modules()]
    before = copy.deepcopy(release.model.state_dict())
    finding = release.verify(release.model, batches("test"))
    assert finding.accepted and finding.bit_accuracy is not None and finding.bit_accuracy > 0.9
    assert all(torch.equal(before[key], value) for key, value in release.model.state_dict().items())


@pytest.mark.parametrize("name", SCHEMES)
def test_the_claim_is_worth_nothing_in_another_model(name: str) -> None:
    torch.manual_seed(1)
    other = BenchNet().eval()
    finding = released(name).verify(other, batches("test"))
    assert finding.accepted is not True and finding.strength < 32


@pytest.mark.parametrize("name", ["deepipr", "paper"])
def test_a_drawn_branch_is_no_claim(name: str) -> None:
    """Passports of a stranger, brought as they are drawn."""
    release = released(name)
    branch = release.scheme.brought(release.model, EVE, None, EXAMPLE)
    assert branch is not None
    finding = release.scheme.verify(release.copy(), EVE, branch.kept(), batches("test"))
    assert finding.accepted is False and finding.strength < 32


def test_the_owners_branch_comes_back_from_passport_and_claim() -> None:
    release = released("paper")
    branch = release.scheme.brought(release.model, OWNER, release.claim, EXAMPLE)
    assert branch is not None
    finding = release.scheme.verify(release.copy(), OWNER, branch.kept(), batches("test"))
    assert finding.accepted and finding.bit_accuracy == 1.0


def test_models_that_a_scheme_cannot_protect_are_refused() -> None:
    small = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    with pytest.raises(DegenerateSite, match="8 mean weights"):
        find_scheme("uchida").protect(small, OWNER)
    with pytest.raises(NoNormalization):
        find_scheme("deepipr", **SETTINGS["deepipr"]).protect(small, OWNER, torch.zeros(2, 8))
