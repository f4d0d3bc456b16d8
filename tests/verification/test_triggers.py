from __future__ import annotations

import pytest
import torch

import passportize as pp
from passportize.errors import InvalidArgument
from passportize.verification.triggers import check_triggers, cloud_triggers, image_triggers

PASSPORT = pp.Passport.generate(owner="Triggers", secret=bytes(range(32)), date="2026-01-01")


# Of the secret 00 01 ... 1f: must never change.
KNOWN_LABELS = [2, 4, 4, 5, 6, 2, 2, 2]
KNOWN_IMAGE_LABELS = [0, 6, 2, 4, 2, 4, 4, 5]
KNOWN_ROW = [0.067779541015625, 0.957244873046875, 0.69970703125, 0.71649169921875]
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


def test_image_triggers_come_from_the_secret_alone():
    first = image_triggers(PASSPORT, 6, (3, 32, 28), 10)
    assert first.inputs.shape == (6, 3, 32, 28) and first.inputs.dtype == torch.float32
    assert float(first.inputs.min()) >= 0.0 and float(first.inputs.max()) < 1.0
    again = image_triggers(PASSPORT, 9, (3, 32, 28), 10)
    assert torch.equal(again.inputs[:6], first.inputs)
    assert torch.equal(again.labels[:6], first.labels)
    other = pp.Passport.generate(owner="Triggers", secret=bytes(32), date="2026-01-01")
    assert not torch.equal(image_triggers(other, 6, (3, 32, 28), 10).inputs, first.inputs)
    named = image_triggers(PASSPORT, 6, (3, 32, 28), 10, name="decoys")
    assert not torch.equal(named.inputs, first.inputs)
    patches = first.inputs[:, :, ::8, ::7]
    assert torch.equal(patches.repeat_interleave(8, 2).repeat_interleave(7, 3), first.inputs)
    assert len(patches.unique()) > 0.95 * patches.numel()


def test_known_image():
    triggers = image_triggers(PASSPORT, 8, (1, 4, 4), 7)
    assert triggers.labels.tolist() == KNOWN_IMAGE_LABELS
    assert triggers.inputs[0, 0, 0].tolist() == pytest.approx(KNOWN_ROW)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 5), (1, 28, 28)])
def test_pictures_of_any_size(shape):
    assert image_triggers(PASSPORT, 2, shape, 2).inputs.shape == (2, *shape)


def test_decoys_measure_chance_and_do_not_count():
    triggers = image_triggers(PASSPORT, 40, (1, 8, 8), 4)
    decoys = image_triggers(PASSPORT, 400, (1, 8, 8), 4, name="decoys")
    known = {
        row.numpy().tobytes(): int(y)
        for row, y in zip(triggers.inputs, triggers.labels, strict=True)
    }

    def remember(inputs: torch.Tensor) -> torch.Tensor:
        return torch.tensor([known.get(row.numpy().tobytes(), 0) for row in inputs])

    verdict = check_triggers(remember, triggers, decoys=decoys)
    assert (verdict.matched, verdict.decoys) == (40, 400)
    assert verdict.decoys_matched == int((decoys.labels == 0).sum())
    assert abs(verdict.decoys_matched - 100) < 40  # four deviations
    assert verdict.strength == check_triggers(remember, triggers).strength == pytest.approx(80)
    assert str(verdict).endswith(f"80 bits; of 400 decoys, {verdict.decoys_matched}")


@pytest.mark.parametrize("shape", [(0, 8, 8), (8, 8)])
def test_image_arguments(shape):
    with pytest.raises(InvalidArgument, match="shape"):
        image_triggers(PASSPORT, 1, shape, 5)
