"""Private running statistics renewed after SWA, and started anew where plain weights are loaded."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, update_bn

import passportize as pp
from passportize.errors import BranchLost, InvalidArgument, NotPassportized
from tests.support.round_trip import assert_same_bits

PASSPORT = pp.Passport.generate("Renewed", date="2026-11-28", secret=bytes(range(32)))
WIDTH = 32


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(3, WIDTH, 3),
        nn.BatchNorm1d(WIDTH),
        nn.Dropout(0.5),
        nn.Conv1d(WIDTH, WIDTH, 3),
        nn.BatchNorm1d(WIDTH),
        nn.Flatten(),
        nn.Linear(WIDTH * 4, 5),
    )


def batches(count: int = 3, rows: int = 16) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        (torch.randn(rows, 3, 8, generator=generator) * 2 + 1, torch.arange(rows) % 5)
        for _ in range(count)
    ]


def protected(config: pp.PassportConfig | None = None) -> nn.Sequential:
    return pp.passportize(network(), PASSPORT, config=config, example_inputs=batches()[0][0])


def step(model: nn.Module) -> None:
    pp.joint_loss(model.train(), *batches()[0], F.cross_entropy)


def expected_statistics(model: nn.Sequential) -> list[tuple[Tensor, Tensor]]:
    """By hand: each norm on its own batches, with the private factors that it has then."""
    found = []
    inputs = [x for x, _ in batches()]
    for module in model:
        if isinstance(module, nn.BatchNorm1d):
            means = torch.stack([x.mean((0, 2)) for x in inputs]).mean(0)
            variances = torch.stack([x.var((0, 2)) for x in inputs]).mean(0)
            found.append((means, variances))
            scale, shift, _ = module.private_factors()
            inputs = [F.batch_norm(x, None, None, scale, shift, training=True) for x in inputs]
        elif not isinstance(module, nn.Dropout):
            inputs = [module(x) for x in inputs]
    return found


@pytest.mark.parametrize("preset", ["keyed", "paper"])
def test_plain_means_over_the_data(preset: str) -> None:
    model = protected(getattr(pp.PassportConfig, preset)())
    step(model)
    model[2].eval()
    host = {k: v.clone() for k, v in pp.host_state_dict(model).items()}
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    assert pp.renew_statistics(model, iter(batches())) == 3
    for norm, (mean, variance) in zip(
        (model[1], model[4]), expected_statistics(model), strict=True
    ):
        torch.testing.assert_close(norm.passport.running_mean, mean)
        torch.testing.assert_close(norm.passport.running_var, variance)
        assert norm.passport.num_batches_tracked == 3 and norm.momentum == 0.1
    assert_same_bits(list(host.values()), list(pp.host_state_dict(model).values()), "host")
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    step(model)


def test_after_swa() -> None:
    model = protected()
    average = AveragedModel(model)
    for _ in range(4):
        step(model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.3)
        average.update_parameters(model)
    data = batches()
    update_bn(data, average)
    swa = average.module
    stale = swa[4].passport.running_var.clone()
    pp.renew_statistics(average, data)
    assert not torch.allclose(stale, swa[4].passport.running_var, rtol=0.2)
    again = copy.deepcopy(swa)
    pp.renew_statistics(again, data)
    assert_same_bits(swa[4].passport.running_var, again[4].passport.running_var, "once is enough")


def test_errors_leave_all_as_it_was() -> None:
    model = protected()
    step(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}

    def interrupted() -> Iterator[Tensor]:
        yield batches()[0][0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pp.renew_statistics(model, interrupted())
    for loader in ([], [batches(rows=1)[0]]):
        with pytest.raises(InvalidArgument, match="no batch of two or more"):
            pp.renew_statistics(model, loader)
    assert_same_bits(list(before.values()), list(model.state_dict().values()), "all")
    assert all(module.training for module in model.modules())
    with pytest.raises(NotPassportized):
        pp.renew_statistics(network(), batches())
    with pytest.raises(InvalidArgument, match="no private branch"):
        pp.renew_statistics(protected(pp.PassportConfig.signature()), batches())
    model[1] = nn.BatchNorm1d(WIDTH)
    with pytest.raises(BranchLost):
        pp.renew_statistics(model, batches())


def test_models_without_statistics_need_nothing() -> None:
    model = nn.Sequential(nn.Linear(16, 64), nn.LayerNorm(64))
    pp.passportize(model, PASSPORT, example_inputs=torch.randn(2, 16))
    assert pp.renew_statistics(model, [torch.randn(4, 16)]) == 0


# --- plain weights loaded after surgery --------------------------------------------------------


def trained_elsewhere() -> nn.Sequential:
    plain = network()
    for x, _ in batches():
        plain(x)
    return plain


@pytest.mark.parametrize("assign", [False, True])
def test_plain_weights_load_strictly(assign: bool) -> None:
    model, plain = protected(), trained_elsewhere()
    state = plain.state_dict()
    keys = list(state)
    model.load_state_dict(state, assign=assign)
    assert list(state) == keys, "the caller's dict was changed"
    for index in (1, 4):
        norm, other = model[index], plain[index]
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            private = getattr(norm.passport, name)
            assert_same_bits(getattr(other, name), private, name)
            assert private.data_ptr() != getattr(norm, name).data_ptr()
            assert private.data_ptr() != getattr(other, name).data_ptr()
    step(model)


def test_a_norm_that_is_the_model() -> None:
    model = pp.passportize(
        nn.ModuleDict({"a": nn.Linear(16, 64), "b": nn.BatchNorm1d(64)}),
        PASSPORT,
        anchors={"b": "a.weight"},
        example_inputs=lambda model: model["b"](model["a"](torch.randn(4, 16))),
    )
    state = nn.BatchNorm1d(64).state_dict()
    state["running_mean"] = torch.full((64,), 3.0)
    model["b"].load_state_dict(state)
    assert (model["b"].passport.running_mean == 3).all()


def test_a_checkpoint_with_branches_is_loaded_as_it_is() -> None:
    model, other = protected(), protected()
    step(model)
    state = model.state_dict()
    other.load_state_dict(state)
    assert_same_bits(list(state.values()), list(other.state_dict().values()), "all")
    assert not torch.equal(other[1].running_mean, other[1].passport.running_mean)
    # One that lost some of its keys is not taken for plain weights.
    del state["1.passport.running_mean"]
    with pytest.raises(RuntimeError, match=r"Missing key.*1\.passport\.running_mean"):
        other.load_state_dict(state)


def test_trained_parameters_of_a_branch_are_still_asked_for() -> None:
    model = protected(pp.PassportConfig.paper())
    with pytest.raises(RuntimeError, match=r"Missing key.*1\.passport\.bottleneck"):
        model.load_state_dict(trained_elsewhere().state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.load_state_dict(trained_elsewhere().state_dict(), strict=False)
    assert_same_bits(model[1].running_var, model[1].passport.running_var, "started anew")


def test_steps_are_counted_on_where_plain_weights_are_loaded() -> None:
    model = protected(pp.PassportConfig.keyed(sign_every=2))
    step(model)
    model.load_state_dict(trained_elsewhere().state_dict())
    assert model[1].passport.switch.step == 1
