"""Joint training: the doubled forward pass against two passes of its own, in float64."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import passportize as pp
from passportize.errors import BranchLost
from passportize.layers.model import passport_layers, switch_of
from passportize.surgery.branches import take_out_branches
from passportize.training.loss import train_jointly
from tests.support.small_joint import (
    CLASSES,
    CONFIGS,
    PASSPORT,
    ROWS,
    Small,
    batch,
    gradients,
    small,
    statistics,
    two_passes,
)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("reentrant", [None, False, True])
def test_one_doubled_pass_has_the_gradients_of_two(name: str, reentrant: bool | None) -> None:
    doubled, separate = small(CONFIGS[name], reentrant), small(CONFIGS[name])
    total = []
    for seed in (0, 1):  # gradients of two batches accumulate
        x, y = batch(seed=seed)
        loss = pp.joint_loss(doubled, x, y, F.cross_entropy)
        loss.total.backward()
        reference = two_passes(separate, x, y, ROWS[name])
        reference.backward()
        total.append((loss.total.item(), reference.item()))
    assert total[0][0] == pytest.approx(total[0][1], rel=1e-12)
    ours, theirs = gradients(doubled), gradients(separate)
    assert ours.keys() == theirs.keys() == dict(doubled.named_parameters()).keys()
    for key, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[key], rtol=1e-9, atol=1e-11, msg=key)
    if reentrant is None:
        for key, value in statistics(doubled).items():
            torch.testing.assert_close(value, statistics(separate)[key], rtol=1e-12, atol=1e-13)


class Twice(Small):
    """Everything is used twice in one forward pass, all norms included."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + super().forward(x.flip(3))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("reentrant", [None, False, True])
def test_the_penalty_of_a_layer_that_is_called_twice_counts_once(
    name: str, reentrant: bool | None
) -> None:
    doubled = small(CONFIGS[name], reentrant, kind=Twice)
    separate = small(CONFIGS[name], kind=Twice)
    x, y = batch()
    loss = pp.joint_loss(doubled, x, y, F.cross_entropy)
    loss.total.backward()
    once = sum(layer.private_factors()[2] for layer in passport_layers(doubled).values())
    torch.testing.assert_close(loss.sign, once, rtol=1e-12, atol=0.0)
    two_passes(separate, x, y, ROWS[name]).backward()
    ours, theirs = gradients(doubled), gradients(separate)
    for key, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[key], rtol=1e-9, atol=1e-11, msg=key)


def test_separate_passes_have_the_same_gradients() -> None:
    config = pp.PassportConfig.keyed(private_fraction=1.0)
    doubled = small(config)
    separate = small(pp.PassportConfig.keyed(private_fraction=1.0, passes="separate"))
    x, y = batch()
    for model in (doubled, separate):
        loss = pp.joint_loss(model, x, y, F.cross_entropy)
        assert loss.private_output.shape == (16, CLASSES)
        loss.total.backward()
    for key, gradient in gradients(doubled).items():
        torch.testing.assert_close(gradient, gradients(separate)[key], rtol=1e-9, atol=1e-11)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo looks at it
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_gradients_are_the_eager_ones_without_a_graph_break() -> None:
    import torch._dynamo as dynamo

    dynamo.utils.counters.clear()
    eager, model = small(CONFIGS["keyed"]), small(CONFIGS["keyed"])
    compiled = torch.compile(model, backend="aot_eager")
    for seed in range(2):
        x, y = batch(seed=seed)
        for candidate in (eager, compiled):
            pp.joint_loss(candidate, x, y, F.cross_entropy).total.backward()
    for key, gradient in gradients(eager).items():
        torch.testing.assert_close(gradient, gradients(model)[key], rtol=1e-9, atol=1e-11)
    for key, value in statistics(eager).items():
        torch.testing.assert_close(value, statistics(model)[key], rtol=1e-12, atol=1e-13)
    assert not dynamo.utils.counters["graph_break"]


def test_every_branch_feeds_its_own_statistics_only() -> None:
    model = small(pp.PassportConfig.keyed(private_fraction=0.5))
    plain = copy.deepcopy(model)
    take_out_branches(plain)
    x, y = batch()
    before = statistics(model)
    pp.joint_loss(model, x, y, F.cross_entropy)
    plain(x)
    after = statistics(model)
    for key, value in plain.named_buffers():
        if "running" in key:
            torch.testing.assert_close(after[key], value, rtol=1e-12, atol=1e-14)
    private = [key for key in after if ".passport." in key]
    assert private
    assert not any(torch.equal(before[key], after[key]) for key in private)
    seen = F.conv2d(x[:8], model.stem[0].weight, model.stem[0].bias, padding=1)
    mean = 0.9 * before["stem.1.passport.running_mean"] + 0.1 * seen.mean((0, 2, 3))
    torch.testing.assert_close(after["stem.1.passport.running_mean"], mean)
    model.eval()
    with pp.branch(model, "private"):
        model(x)
    model(x)
    assert all(torch.equal(value, statistics(model)[key]) for key, value in after.items())


@pytest.mark.parametrize(("rows", "share"), [(6, 6), (16, 8), (64, 16)])
def test_batch_statistics_are_never_those_of_a_few_samples(rows: int, share: int) -> None:
    model = small()
    x, y = batch(rows)
    assert len(pp.joint_loss(model, x, y, F.cross_entropy).private_output) == share
    model = small(where="norm")
    assert switch_of(model).batch_statistics
    model = pp.unpassportize(model)
    model.stem[1] = model.body[1] = nn.Identity()
    inputs = torch.zeros(2, 3, 8, 8, dtype=torch.float64)
    pp.passportize(model, PASSPORT, example_inputs=inputs)
    loss = pp.joint_loss(model, x, y, F.cross_entropy)
    assert len(loss.private_output) == round(rows / 4)


class Pooled(nn.Module):
    """One norm over positions, and one behind the pooling, with or without dimensions left."""

    def __init__(self, head: nn.Module, keep: bool = False) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.second, self.head, self.keep = nn.Conv2d(8, 8, 1), head, keep

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.norm(self.conv(x)).mean((2, 3), keepdim=True))
        return self.head(x if self.keep else x.flatten(1)).reshape(len(x), 8)


@pytest.mark.parametrize(
    ("head", "keep", "known", "least"),
    [
        (nn.BatchNorm1d(8), False, True, 16),
        (nn.BatchNorm1d(8), False, False, 16),
        (nn.BatchNorm2d(8), True, True, 16),
        (nn.LayerNorm(8), False, True, 8),
        (nn.Identity(), False, True, 8),
        # Tokens laid one behind another: as many values as there are tokens.
        (
            nn.Sequential(nn.Unflatten(1, (4, 2)), nn.Flatten(0, 1), nn.BatchNorm1d(2)),
            False,
            True,
            8,
        ),
    ],
)
def test_norms_behind_the_pooling_get_more_samples(
    head: nn.Module, keep: bool, known: bool, least: int
) -> None:
    torch.manual_seed(0)
    model = Pooled(copy.deepcopy(head), keep)
    inputs = torch.randn(2, 3, 8, 8) if known else None
    if known:
        planned = pp.plan(model, example_inputs=inputs)
        assert planned.samples_only == ({"head"} if least == 16 else set())
    pp.passportize(model, PASSPORT, example_inputs=inputs)
    for rows in (6, 12, 40, 200):
        x, y = torch.randn(rows, 3, 8, 8), torch.arange(rows) % CLASSES
        loss = pp.joint_loss(model, x, y, F.cross_entropy)
        assert len(loss.private_output) == min(rows, max(least, rows // 4))


@pytest.mark.parametrize(
    ("rows", "share", "weight"), [(6, 6, 1.0), (16, 8, 0.5**0.5), (32, 8, 0.5), (128, 32, 1.0)]
)
def test_few_private_samples_count_less(rows: int, share: int, weight: float) -> None:
    """Their mean is noisy, and added in full it would drown what the whole batch says."""
    model = small(pp.PassportConfig.keyed(private_weight=0.6))
    x, y = batch(rows)
    loss = pp.joint_loss(model, x, y, F.cross_entropy)
    assert len(loss.private_output) == share
    expected = loss.public + 0.6 * weight * loss.private + loss.sign
    torch.testing.assert_close(loss.total, expected)
    model = small(pp.PassportConfig.keyed(passes="separate", private_weight=0.6))
    loss = pp.joint_loss(model, x, y, F.cross_entropy)
    torch.testing.assert_close(loss.total, loss.public + 0.6 * loss.private + loss.sign)


@pytest.mark.parametrize(
    ("rows", "said"),
    [(64, "16 of 64"), (40, "10 of 40"), (16, "8 of 16"), (128, ""), (8, "")],
)
def test_few_private_samples_are_told_once(
    rows: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = small()
    with caplog.at_level(logging.WARNING, "passportize"):
        for _ in range(2):
            pp.joint_loss(model, *batch(rows), F.cross_entropy)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == bool(said) and all(said in message for message in told)
    if said:
        fraction = told[0].partition("private_fraction=")[2].split()[0]
        caplog.clear()
        enough = small(pp.PassportConfig.keyed(private_fraction=float(fraction)))
        pp.joint_loss(enough, *batch(rows), F.cross_entropy)
        assert not caplog.records


def test_a_lost_layer_is_noticed_by_name() -> None:
    model = train_jointly(small())
    model.stem[1] = nn.BatchNorm2d(8).double()
    with pytest.raises(BranchLost, match=r"stem\.1 lost its private branch"):
        model(batch()[0])
