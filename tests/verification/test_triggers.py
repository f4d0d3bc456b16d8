from __future__ import annotations

import pytest
import torch

import passportize as pp
from passportize.errors import InvalidArgument
from passportize.verification.triggers import check_triggers, cloud_triggers

PASSPORT = pp.Passport.generate(owner="Triggers", secret=bytes(range(32)), date="2026-01-01")


# Of the secret 00 01 ... 1f: must never change.
KNOWN_LABELS = [2, 4, 4, 5, 6, 2, 2, 2]
KNOWN_POINT = [-0.462340772151947, 0.3376351594924927, 0.5786514282226562]


def test_triggers_come_from_the_secret_alone():
    first = cloud_triggers(PASSPORT, 12, 64, 10)
    assert first.inputs.shape == (12, 64, 3) and first.inputs.dtype == torch.float32
    assert float(first.inputs.norm(dim=2).max()) <= 1.0 + 1e-6
    again = cloud_triggers(PASSPORT, 20, 64, 10)
    assert torch.equal(again.inputs[:12], first.inputs)
    assert torch.equal(again.labels[:12], first.labels)
    other = pp.Passport.generate(owner="Triggers", secret=bytes(32), date="2026-01-01")
    assert not torch.equal(cloud_triggers(other, 12, 64, 10).inputs, first.inputs)
    assert not torch.equal(cloud_triggers(PASSPORT, 12, 64, 10, name="b").inputs, first.inputs)
    assert repr(first) == "TriggerSet(12 triggers, 10 classes)"


def test_known_answer():
    triggers = cloud_triggers(PASSPORT, 8, 4, 7)
    assert triggers.labels.tolist() == KNOWN_LABELS
    assert triggers.inputs[0, 0].tolist() == pytest.approx(KNOWN_POINT)


def test_labels_are_uniform():
    labels = cloud_triggers(PASSPORT, 3000, 1, 6).labels
    counts = labels.bincount(minlength=6).double()
    assert float(((counts - 500).square() / 500).sum()) < 20.5  # chi-square, 5 degrees, 0.1 %


def test_strength_is_the_exact_binomial():
    triggers = cloud_triggers(PASSPORT, 30, 8, 5)
    right = torch.nn.functional.one_hot(triggers.labels, 5).float()
    position = iter(range(0, 30, 7))

    def remember(inputs: torch.Tensor) -> torch.Tensor:
        start = next(position)
        return right[start : start + len(inputs)]

    verdict = check_triggers(remember, triggers, batch=7)
    assert (verdict.matched, verdict.total) == (30, 30)
    assert verdict.strength == pytest.approx(30 * torch.tensor(5.0).log2().item())
    wrong = check_triggers(lambda inputs: torch.full((len(inputs),), -1), triggers)
    assert wrong.matched == 0 and wrong.strength == 0.0
    assert str(wrong) == "0 of 30 triggers answered as trained in (6.0 expected by chance): 0 bits"


def test_the_strength_of_many_triggers_is_a_number():
    triggers = cloud_triggers(PASSPORT, 340, 1, 10)
    right = torch.nn.functional.one_hot(triggers.labels, 10).float()
    verdict = check_triggers(lambda inputs: right, triggers, batch=340)
    assert verdict.matched == 340
    assert verdict.strength == pytest.approx(340 * torch.tensor(10.0).log2().item())


def test_arguments():
    with pytest.raises(InvalidArgument, match="count and points"):
        cloud_triggers(PASSPORT, 0, 8, 5)
    triggers = cloud_triggers(PASSPORT, 3, 8, 5)
    with pytest.raises(InvalidArgument, match="class scores"):
        check_triggers(lambda inputs: torch.zeros(3, 2, 5), triggers)
    with pytest.raises(InvalidArgument, match="2 rows for 3"):
        check_triggers(lambda inputs: torch.zeros(2, 5), triggers)
