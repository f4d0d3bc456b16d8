"""A joint step around somebody else's step."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import passportize as pp
from passportize.errors import BranchMisuse, InvalidArgument
from passportize.layers.joint_forward import weight_for
from passportize.training.step import joint_step
from tests.support.small_protected import PASSPORT, TinyNet, group_norm

CRITERION = nn.functional.cross_entropy
# In every step all of it, so that one step says what the next one does.
ALWAYS = pp.PassportConfig.keyed(sign_every=1)


def batch(rows: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(rows, 1, 8, 8, generator=generator), torch.arange(rows) % 10


def net(norm=group_norm, config: pp.PassportConfig = ALWAYS) -> nn.Module:
    torch.manual_seed(0)
    model = TinyNet(norm).double()
    return pp.passportize(model, PASSPORT, config=config).train()


def gradients(model: nn.Module) -> list[Tensor]:
    found = [item.grad for item in model.parameters()]
    return [item for item in found if item is not None]


def step_of(model: nn.Module):
    def step(samples: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = samples
        return CRITERION(model(images.double()), labels)

    return step


@pytest.mark.parametrize("preset", ["keyed", "paper", "signature"])
def test_is_the_joint_loss(preset: str) -> None:
    config = getattr(pp.PassportConfig, preset)(sign_every=1)
    one, two = net(config=config), net(config=config)
    x, y = batch()
    wanted = pp.joint_loss(one, x.double(), y, CRITERION)
    wanted.total.backward()
    found = joint_step(two, step_of(two), (x, y))
    assert found is not None
    found.total.backward()
    torch.testing.assert_close(found.public, wanted.public)
    torch.testing.assert_close(found.sign, wanted.sign)
    assert (found.private is None) == (preset == "signature")
    torch.testing.assert_close(found.private, wanted.private)
    torch.testing.assert_close(found.total, wanted.total)
    for left, right in zip(gradients(two), gradients(one), strict=True):
        torch.testing.assert_close(left, right)


def test_the_private_pass_leaves_nothing_behind() -> None:
    """Statistics, counters and lists of the module around it are those of one plain step."""

    class Around(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network
            self.before = nn.BatchNorm2d(1).double()
            self.steps = 0
            self.losses: list[float] = []
            self.register_buffer("seen", torch.zeros(()))

        def step(self, samples: tuple[Tensor, Tensor]) -> Tensor:
            images, labels = samples
            loss = CRITERION(self.network(self.before(images.double())), labels)
            self.steps += 1
            self.losses.append(float(loss.detach()))
            self.seen += len(images)
            return loss

    torch.manual_seed(0)
    plain = Around(TinyNet().double()).train()
    joint = copy.deepcopy(plain)
    pp.passportize(joint.network, PASSPORT, config=ALWAYS)
    for module in (plain, joint):
        for _ in range(2):
            if module is joint:
                loss = joint_step(joint.network, joint.step, batch(), within=joint)
                assert loss is not None and loss.private is not None
            else:
                module.step(batch())
    assert joint.steps == 2 and joint.losses == plain.losses
    own = dict(joint.named_buffers())
    for name, value in plain.named_buffers():
        assert torch.equal(own[name], value), name
    # Shown to be able to fail: without the module around, the second pass is seen by it.
    joint_step(joint.network, joint.step, batch())
    assert joint.steps == 4


def test_a_network_that_is_called_twice_counts_its_sign_loss_once() -> None:
    model = net(config=pp.PassportConfig.keyed(sign_every=2))
    calls = []

    def step(samples: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = samples
        calls.append(len(images))
        return CRITERION(model(images.double()) + model(images.double()), labels)

    first = joint_step(model, step, batch())
    second = joint_step(model, step, batch())
    assert first is not None and second is not None
    once = pp.joint_loss(net(), batch()[0].double(), batch()[1], CRITERION)
    torch.testing.assert_close(first.sign, once.sign)
    assert first.sign.item() > 0 and second.sign.item() == 0
    assert calls == [12, 3, 12, 3]


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool) -> None:
    """Parts are repeated in the backward pass, each in the branch that it was first run in."""

    class Checkpointed(TinyNet):
        def forward(self, x: Tensor) -> Tensor:
            run = super().forward
            return checkpoint(run, x.requires_grad_(), use_reentrant=reentrant)

    models = []
    for kind in (TinyNet, Checkpointed):
        torch.manual_seed(0)
        model = pp.passportize(kind(group_norm).double(), PASSPORT, config=ALWAYS).train()
        loss = joint_step(model, step_of(model), batch())
        assert loss is not None
        loss.total.backward()
        models.append(model)
    for left, right in zip(gradients(models[0]), gradients(models[1]), strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize(
    ("extra", "rows"),
    [
        (lambda x, y: (x, y), 3),
        (lambda x, y: {"x": x, "y": y, "epoch": 3}, 3),
        (lambda x, y: (x, y, ["a"] * 12), 12),
        (lambda x, y: (x, y, torch.zeros(5)), 12),
        (lambda x, y: (x[:1], y[:1]), 1),
    ],
    ids=["tuple", "mapping", "strings", "another length", "one sample"],
)
def test_which_samples_are_private(extra, rows: int) -> None:
    model = net()
    seen = []

    def step(samples) -> Tensor:
        if isinstance(samples, dict):
            x, y = samples.pop("x"), samples.pop("y")  # as Trainers do with their inputs
        else:
            x, y = samples[:2]
        seen.append(len(x))
        loss = CRITERION(model(x.double()), y)
        x.zero_()  # a step may write into its batch
        return loss

    x, y = batch()
    given = extra(x, y)
    total = len(given["x"] if isinstance(given, dict) else given[0])
    loss = joint_step(model, step, given)
    assert loss is not None and loss.private is not None and seen == [total, rows]
    whole = rows == total
    weight = ALWAYS.private_weight if whole else weight_for(ALWAYS.private_weight, total, rows)
    torch.testing.assert_close(loss.total, loss.public + loss.sign + weight * loss.private)
    # What the public pass wrote into the batch is not what the private one saw.
    zeros = net()
    with pp.branch(zeros, "private"):
        blank = CRITERION(zeros(torch.zeros(rows, 1, 8, 8).double()), y[:rows])
    assert loss.private.item() != blank.item()


def test_a_batch_goes_whole_where_two_passes_were_asked_for() -> None:
    model = net(config=pp.PassportConfig.keyed(passes="separate"))
    seen = []

    def step(samples) -> Tensor:
        seen.append(len(samples[0]))
        return step_of(model)(samples)

    joint_step(model, step, batch())
    assert seen == [12, 12]


def test_misuse_is_named() -> None:
    model = net()
    x, y = batch()
    parts = nn.Sequential(model.conv1, model.bn1)
    with pytest.raises(BranchMisuse, match="never called TinyNet in training mode"):
        joint_step(model, lambda samples: parts(samples[0].double()).mean(), (x, y))
    with pytest.raises(BranchMisuse, match="never called TinyNet in training mode"):
        joint_step(model.eval(), step_of(model), (x, y))
    model.train()
    with pytest.raises(InvalidArgument, match="one number, not shape"):
        joint_step(model, lambda samples: model(samples[0].double()), (x, y))
    assert joint_step(model, lambda samples: None, (x, y)) is None

    def broken(samples) -> Tensor:
        step_of(model)(samples)
        raise RuntimeError("in the step")

    with pytest.raises(RuntimeError, match="in the step"):
        joint_step(model, broken, (x, y))
    # Afterwards all is as it should be.
    assert isinstance(model(x.double()), Tensor)
    assert pp.joint_loss(model, x.double(), y, CRITERION).private is not None
