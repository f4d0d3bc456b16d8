"""Every adapter: given the host's own factors and statistics, the private norm is the host's."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import timm.layers.inplace_abn
import torch
from torch import Tensor, nn

from passportize.layers.switch import Pass
from passportize.surgery.branches import take_out_branch
from tests.support.norm_cases import CASES, IMAGE, Case, example, passportized, randomised
from tests.support.round_trip import ModelSnapshot, assert_same_bits, is_host_key


@pytest.fixture(autouse=True)
def abn_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """The inplace_abn package needs a CUDA compiler; this does what it does, on any machine."""

    def inplace_abn(
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        var: Tensor,
        training: bool,
        momentum: float,
        eps: float,
        activation: str,
        slope: float,
    ) -> Tensor:
        scale = weight.abs() + eps
        out = nn.functional.batch_norm(x.clone(), mean, var, scale, bias, training, momentum, eps)
        return x.copy_(nn.functional.leaky_relu(out, slope))

    monkeypatch.setattr(timm.layers.inplace_abn, "inplace_abn", inplace_abn)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_private_norm_with_the_hosts_factors_is_the_hosts_forward(
    case: Case, training: bool, dtype: torch.dtype
) -> None:
    host = randomised(case.build(), dtype).train(training)
    x = example(case.shape, dtype)
    layer = passportized(copy.deepcopy(host))
    branch = layer.passport
    before = {name: buffer.clone() for name, buffer in layer.named_buffers() if is_host_key(name)}
    for _ in range(2):
        torch.manual_seed(0)
        expected = host(x.clone())
        torch.manual_seed(0)
        scale, shift, _ = layer.private_factors(x)
        actual = layer.private_norm(x.clone(), scale, shift)
        assert actual.dtype == expected.dtype
        assert_same_bits(expected, actual, case.name)
    for name, buffer in host.named_buffers():
        if name in ("running_mean", "running_var", "num_batches_tracked"):
            assert_same_bits(buffer, getattr(branch, name), name)
            assert_same_bits(before[name], getattr(layer, name), f"public {name}")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_other_factors_reach_the_output_and_gradients_flow(case: Case) -> None:
    layer = passportized(randomised(case.build()))
    public = getattr(layer, layer.scale_name, None)
    count, _ = type(layer).channel_choices(layer)[0]
    shape = (count,) if public is None else tuple(public.shape)
    scale = (torch.rand(shape) + 0.5).requires_grad_()
    x = example(case.shape).requires_grad_()
    shift = layer.private_factors(x)[1]
    torch.manual_seed(0)
    one = layer.private_norm(x * 1, scale, shift)
    torch.manual_seed(0)
    two = layer.private_norm(x * 1, 3 * scale, shift)
    assert not torch.equal(one, two)
    one.float().square().mean().backward()
    assert x.grad is not None and bool(x.grad.isfinite().all())
    assert scale.grad is not None and bool(scale.grad.any())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_swap_keeps_keys_and_forward_and_swap_back_restores_all(case: Case) -> None:
    norm = randomised(case.build()).eval()
    x = example(case.shape)
    expected = norm(x.clone())
    before = ModelSnapshot.of(norm)
    layer = passportized(norm)
    keys = list(layer.state_dict())
    assert [key for key in keys if is_host_key(key)] == list(before.state)
    assert isinstance(layer, before.modules[0][2])
    assert_same_bits(expected, layer(x.clone()), "public forward")
    assert layer.train().passport.training and not layer.eval().passport.training
    take_out_branch(layer)
    before.check(norm)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_deepcopy_and_pickle_of_a_swapped_norm(case: Case) -> None:
    layer = passportized(randomised(case.build()).eval())
    x = example(case.shape)
    expected = layer(x.clone())
    twin = copy.deepcopy(layer)
    assert type(twin) is type(layer)
    assert twin.passport.switch is not layer.passport.switch
    assert_same_bits(expected, twin(x.clone()), "deep copy")
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert type(loaded) is type(layer)
    assert_same_bits(expected, loaded(x.clone()), "from a file")
    assert pickle.loads(pickle.dumps(type(layer))) is type(layer)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_follows_may_work_in_place(case: Case) -> None:
    layer = passportized(randomised(case.build()).train())
    x = example(case.shape).requires_grad_()
    scale, shift, _ = layer.private_factors(x)
    # A fused activation keeps its output for backward, in the host as well.
    fused = not isinstance(getattr(layer, "act", nn.Identity()), nn.Identity)
    follower = nn.Identity() if fused or "InplaceAbn" in case.name else nn.ReLU(inplace=True)
    out = follower(layer.private_norm(x * 1, scale, shift))
    assert out.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
    out.sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("case", [case for case in CASES if case.shape == IMAGE], ids=str)
def test_joint_rows_are_normed_apart(case: Case) -> None:
    """In a doubled batch each branch sees its own rows only."""
    host = randomised(case.build()).train()
    if isinstance(getattr(host, "drop", None), nn.Dropout2d):
        host.drop.p = 0.0  # each branch draws random numbers of its own
    layer = passportized(copy.deepcopy(host))
    switch = layer.passport.switch
    switch.current, switch.active = Pass.JOINT, True
    switch.public_rows, switch.private_rows = 3, 2
    x = example((5, *case.shape[1:]))
    expected = host(x[:3].clone())
    out = layer(x.clone())
    assert_same_bits(expected, out[:3], "public rows")
    for name in ("running_mean", "running_var"):
        if getattr(host, name, None) is not None:
            assert_same_bits(getattr(host, name), getattr(layer, name), name)
