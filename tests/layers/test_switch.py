"""Which branch runs, what is due in a step, and what copies and checkpoints know of it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

import passportize as pp
from passportize.layers.model import switch_of
from passportize.layers.switch import Pass
from passportize.training.loss import train_jointly
from tests.support.small_joint import CONFIGS, batch, gradients, small


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("sign_every", [1, 2])
def test_checkpointing_repeats_either_of_two_separate_passes(
    reentrant: bool, sign_every: int
) -> None:
    config = pp.PassportConfig.keyed(passes="separate", sign_every=sign_every, private_fraction=0.5)
    models = [small(config), small(config, reentrant=reentrant)]
    for model in models:
        # All steps first, then their gradients, the last one first.
        losses = []
        for seed in range(3):
            x, y = batch(seed=seed)
            losses.append(pp.joint_loss(model, x.requires_grad_(), y, F.cross_entropy).total)
        for loss in reversed(losses):
            loss.backward()
    for key, gradient in gradients(models[0]).items():
        torch.testing.assert_close(gradient, gradients(models[1])[key], rtol=1e-9, atol=1e-11)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize(
    "config",
    [
        pp.PassportConfig.signature(sign_every=3),
        pp.PassportConfig.keyed(private_every=3, private_fraction=1.0),
    ],
    ids=["sign_every", "private_every"],
)
@pytest.mark.usefixtures("fresh_compiler")
def test_a_step_counter_is_no_new_program_at_every_step(config: pp.PassportConfig) -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("eager")
    eager, model = small(config), small(config)
    compiled = torch.compile(model, backend=counter, dynamic=False)
    programs = []
    for seed in range(16):
        losses = [
            pp.joint_loss(candidate, *batch(seed=seed), F.cross_entropy)
            for candidate in (eager, compiled)
        ]
        assert losses[0].total.item() == pytest.approx(losses[1].total.item(), rel=1e-9)
        assert bool(losses[1].sign.item() > 0) == (seed % config.sign_every == 0)
        losses[1].total.backward()
        programs.append(counter.frame_count)
    # Two kinds of step, and once more for parts that dynamo compiles when it meets them again.
    assert programs[0] < programs[1]
    assert len(set(programs[6:])) == 1


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_repeats_a_step_without_sign_loss(reentrant: bool) -> None:
    config = pp.PassportConfig.keyed(sign_every=2, private_fraction=0.5)
    models = [small(config), small(config, reentrant=reentrant)]
    x, y = batch()
    x.requires_grad_()
    for model in models:
        for _ in range(2):
            model.zero_grad()
            pp.joint_loss(model, x, y, F.cross_entropy).total.backward()
    for key, gradient in gradients(models[0]).items():
        torch.testing.assert_close(gradient, gradients(models[1])[key], rtol=1e-9, atol=1e-11)


def test_the_step_counter_travels_in_the_state_dict_and_leaves_with_the_branch() -> None:
    config = pp.PassportConfig.keyed(sign_every=4)
    model, resumed = small(config), small(config)
    plain = copy.deepcopy(model)
    pp.unpassportize(plain)
    x, y = batch()
    for _ in range(3):
        pp.joint_loss(model, x, y, F.cross_entropy)
    averaged = copy.deepcopy(model)
    state = model.state_dict()
    assert [key for key in state if "counter" in key] == ["stem.1.passport.counter._extra_state"]
    resumed.load_state_dict(state)
    for candidate in (resumed, averaged):
        due = [
            bool(pp.joint_loss(candidate, x, y, F.cross_entropy).sign.requires_grad)
            for _ in range(3)
        ]
        assert due == [False, True, False]
    assert switch_of(model).step == 3
    assert pp.host_state_dict(model).keys() == plain.state_dict().keys()
    assert not any("counter" in name for name, _ in small(CONFIGS["keyed"]).named_modules())


def test_the_private_branch_runs_at_every_third_step_on_its_share() -> None:
    model = small(pp.PassportConfig.keyed(private_every=3, private_fraction=0.25))
    x, y = batch(40)
    rows = []
    for _ in range(4):
        loss = pp.joint_loss(model, x, y, F.cross_entropy)
        rows.append(0 if loss.private_output is None else len(loss.private_output))
        assert (loss.private is None) == (rows[-1] == 0)
    assert rows == [10, 0, 0, 10]


@pytest.mark.parametrize(
    ("fraction", "every", "expected"),
    [(0.25, 1, "1000100"), (1.0, 1, "1111111"), (0.3, 1, "1001001"), (0.5, 3, "1000001")],
)
def test_two_passes_take_a_share_of_the_batches(fraction: float, every: int, expected: str) -> None:
    config = pp.PassportConfig.keyed(
        passes="separate", private_fraction=fraction, private_every=every
    )
    model = small(config)
    x, y = batch()
    passes = []
    model.project.register_forward_hook(lambda *_: passes.append(1))
    for due in expected:
        passes.clear()
        loss = pp.joint_loss(model, x, y, F.cross_entropy)
        assert len(passes) == 1 + int(due)
        assert (loss.private is not None) == bool(int(due))
        if loss.private_output is not None:
            assert len(loss.private_output) == len(x)


def test_a_copy_has_a_switch_of_its_own_and_shares_the_secret() -> None:
    model = train_jointly(small(CONFIGS["keyed"]))
    average = copy.deepcopy(model)
    assert switch_of(average) is not switch_of(model)
    assert switch_of(average).mode is Pass.PUBLIC
    x, y = batch()
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.mul_(1.5)
    pp.joint_loss(model, x, y, F.cross_entropy).total.backward()
    assert all(parameter.grad is None for parameter in average.parameters())
    pp.joint_loss(average, x, y, F.cross_entropy).total.backward()
    assert pp.signature_accuracy(average) == pp.signature_accuracy(model)
    for value in gradients(average).values():
        assert torch.isfinite(value).all()


def test_a_part_called_by_itself_is_public() -> None:
    model = train_jointly(small())
    x, _ = batch()
    model(x)
    assert model.stem(x).shape[0] == 16
