"""The private branch of one norm: its factors, its gradients, its secret."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import passportize as pp
from passportize.errors import PassportLocked, WrongPassport
from passportize.layers.model import passport_layers
from passportize.training.loss import train_jointly
from tests.support.small_joint import CONFIGS, PASSPORT, batch, gradients, small


def test_autocast_keeps_the_factors_in_single_precision() -> None:
    model, exact = (small(CONFIGS["keyed"], dtype=torch.float32) for _ in range(2))
    x, y = batch()
    x = x.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for layer in passport_layers(model).values():
            scale, shift, penalty = layer.private_factors()
            assert scale.dtype == shift.dtype == penalty.dtype == torch.float32
        loss = pp.joint_loss(model, x, y, F.cross_entropy)
    assert loss.private_output.dtype == torch.bfloat16
    loss.total.backward()
    reference = pp.joint_loss(exact, x, y, F.cross_entropy)
    reference.total.backward()
    assert loss.sign.item() == pytest.approx(reference.sign.item(), rel=1e-6)
    for key, gradient in gradients(model).items():
        assert gradient.dtype == torch.float32
        relative = (gradient - gradients(exact)[key]).norm() / gradients(exact)[key].norm()
        assert relative < 0.1 or gradients(exact)[key].norm() < 1e-3, key


@pytest.mark.parametrize("passes", ["doubled", "separate"])
@pytest.mark.parametrize("preset", ["keyed", "paper"])
def test_without_a_sign_loss_the_responses_are_constants(preset: str, passes: str) -> None:
    make = getattr(pp.PassportConfig, preset)
    x, y = batch()
    models = {
        "turns": small(make(sign_every=2, private_fraction=1.0, passes=passes)),
        "frozen": small(make(sign_weight=0.0, response_weight=0.0, private_fraction=1.0)),
    }
    for layer in passport_layers(models["frozen"]).values():
        whole = layer.passport.responses
        layer.passport.responses = lambda whole=whole: type(whole())(*(t.detach() for t in whole()))
    for model in models.values():
        for step in range(2):
            loss = pp.joint_loss(model, x, y, F.cross_entropy)
            if step == 0 and model is models["turns"]:
                assert loss.sign.requires_grad
            model.zero_grad()
            loss.total.backward()
    assert loss.private is not None
    assert gradients(models["turns"]).keys() == gradients(models["frozen"]).keys()
    for key, gradient in gradients(models["frozen"]).items():
        torch.testing.assert_close(gradient, gradients(models["turns"])[key], rtol=1e-9, atol=1e-11)
    learning = small(make(sign_weight=0.0, response_weight=0.0, private_fraction=1.0))
    pp.joint_loss(learning, x, y, F.cross_entropy).total.backward()
    found, constant = (gradients(m)["project.weight"] for m in (learning, models["frozen"]))
    if preset == "keyed":
        # Nothing is ever learned through the responses, except by the sign loss.
        torch.testing.assert_close(found, constant, rtol=1e-9, atol=1e-11)
    else:
        # Not what a step with sign loss would have given.
        assert not torch.allclose(found, constant)


def test_a_private_pass_of_ones_own_keeps_its_gradient_after_a_step_without_sign_loss() -> None:
    model = small(pp.PassportConfig.keyed(sign_every=2))
    x, y = batch()
    for _ in range(2):
        pp.joint_loss(model, x, y, F.cross_entropy)
    with pp.branch(model, "private"):
        F.cross_entropy(model(x), y).backward()
    fresh = small(pp.PassportConfig.keyed())
    with pp.branch(fresh, "private"):
        F.cross_entropy(fresh(x), y).backward()
    for key, gradient in gradients(fresh).items():
        torch.testing.assert_close(gradient, gradients(model)[key], rtol=1e-9, atol=1e-11)


def test_a_saved_model_holds_no_secret_and_is_unlocked_again() -> None:
    model = train_jointly(small(CONFIGS["paper"]))
    x, y = batch()
    model(x)
    stream = io.BytesIO()
    torch.save(model, stream)
    data = stream.getvalue()
    for layer in passport_layers(model).values():
        secret = layer.passport.secret
        assert secret.bits.numpy().tobytes() not in data
        for side in secret.sides:
            assert side.values.numpy().tobytes() not in data
    assert bytes(range(32)) not in data
    stream.seek(0)
    loaded = torch.load(stream, weights_only=False)
    assert torch.equal(loaded.eval()(x), model.eval()(x))
    with pytest.raises(PassportLocked, match="unlock"):
        pp.joint_loss(loaded.train(), x, y, F.cross_entropy)
    with pytest.raises(WrongPassport):
        pp.unlock(loaded, pp.Passport.generate("Someone else"))
    pp.unlock(loaded, PASSPORT)
    model.train()
    ours = pp.joint_loss(loaded, x, y, F.cross_entropy).total
    assert torch.equal(ours, pp.joint_loss(model, x, y, F.cross_entropy).total)


def test_no_secret_is_a_parameter_or_a_buffer() -> None:
    """DDP would broadcast it, a checkpoint hold it."""
    model = small(CONFIGS["paper"])
    public = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    public |= {tensor.untyped_storage().data_ptr() for tensor in model.buffers()}
    for layer in passport_layers(model).values():
        secret = layer.passport.secret
        held = [secret.bits, *(side.values for side in secret.sides)]
        assert not public & {tensor.untyped_storage().data_ptr() for tensor in held}


# --- the formulas, beside a second calculation in numpy -----------------------------------------


def by_hand(layer: pp.PassportLayer) -> tuple[np.ndarray, np.ndarray]:
    """``tanh(q u)`` and ``tanh(v)`` of the rows of a layer, from signs and rows alone."""
    branch = layer.passport
    (side,) = branch.secret.sides
    ((owner, attribute, part),) = branch.weights.owners
    w = getattr(owner, attribute).detach().double().flatten(1).numpy()
    w = w[:, side.offset : side.offset + side.codes.shape[1]]
    w = w - w.mean(0) if part.less_mean_row else w
    codes = side.codes.numpy()
    s, t, r = (1.0 - 2.0 * ((codes >> plane) & 1) for plane in range(3))
    length = np.sqrt((w**2).sum(1))
    gauge = (w * s).sum(1) / length
    u = np.where(gauge < 0, -1, 1) * (w * t).sum(1) / length
    return np.tanh(r[:, 0] * u), np.tanh((w * r).sum(1) / length)


@pytest.mark.parametrize("affine", ["scale and shift", "scale"])
@pytest.mark.parametrize("shift_scale", [0.25, 1.5])
def test_keyed_factors_are_those_of_the_formula(affine: str, shift_scale: float) -> None:
    torch.manual_seed(1)
    norm = nn.LayerNorm(24, bias=affine != "scale")
    model = nn.Sequential(nn.Linear(40, 24), norm, nn.Linear(24, 3)).double()
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_()
    config = pp.PassportConfig.keyed(shift_scale=shift_scale)
    pp.passportize(model, PASSPORT, config=config, example_inputs=torch.randn(4, 40).double())
    tanh_u, tanh_v = by_hand(norm)
    scale, shift, _ = norm.private_factors()
    g, b = norm.weight.detach().numpy(), 0.0
    if norm.bias is not None:
        b = norm.bias.detach().numpy()
    np.testing.assert_allclose(scale.detach(), g * tanh_u, rtol=1e-12)
    if shift is not None:
        np.testing.assert_allclose(shift.detach(), b + shift_scale * g * tanh_v, rtol=1e-12)
    # The gradient: of the scale g tanh(u) + shift_scale g tanh(v), of the shift 1.
    weights = torch.randn(2, 24, dtype=torch.float64)
    total = (weights[0] * scale).sum()
    expected = weights[0].numpy() * tanh_u
    if shift is not None:
        total = total + (weights[1] * shift).sum()
        expected = expected + shift_scale * weights[1].numpy() * tanh_v
    total.backward()
    np.testing.assert_allclose(norm.weight.grad, expected, rtol=1e-12)
    if norm.bias is not None:
        np.testing.assert_allclose(norm.bias.grad, weights[1], rtol=1e-12)
    assert model[0].weight.grad is None  # the responses are constants


def test_factors_of_several_axes_go_along_the_one_that_counts_channels() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(5, 12, 3), nn.LayerNorm([12, 4, 4])).double()
    with torch.no_grad():
        for parameter in model[1].parameters():
            parameter.normal_()
    pp.passportize(model, PASSPORT, example_inputs=torch.randn(2, 5, 6, 6).double())
    norm = model[1]
    tanh_u, tanh_v = (side[:, None, None] for side in by_hand(norm))
    scale, shift, _ = norm.private_factors()
    g, b = norm.weight.detach().numpy(), norm.bias.detach().numpy()
    np.testing.assert_allclose(scale.detach(), g * tanh_u, rtol=1e-12)
    np.testing.assert_allclose(shift.detach(), b + 0.25 * g * tanh_v, rtol=1e-12)


def test_the_published_bottleneck() -> None:
    model = small(CONFIGS["paper"])
    layer = next(layer for layer in passport_layers(model).values() if layer.passport.bound)
    branch = layer.passport
    answers = branch.responses()
    first, _, second = branch.bottleneck
    sides = np.stack([answers.gamma.detach(), answers.beta.detach()])
    hidden = sides @ first.weight.detach().numpy().T
    expected = np.where(hidden > 0, hidden, 0.01 * hidden) @ second.weight.detach().numpy().T
    scale, shift, penalty = layer.private_factors()
    np.testing.assert_allclose(scale.detach(), expected[0], rtol=1e-9)
    np.testing.assert_allclose(shift.detach(), expected[1], rtol=1e-9)
    bits, u = branch.secret.bits.numpy(), answers.gamma.detach().numpy()
    config = branch.config
    hinge = np.maximum(0, config.margin - bits * u).sum()
    wanted = config.sign_weight * hinge + config.response_weight * (u**2).sum()
    assert penalty.item() == pytest.approx(wanted, rel=1e-9)
