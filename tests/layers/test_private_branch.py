"""The private branch of one norm: its factors, its gradients, its secret."""

from __future__ import annotations

import io

import pytest
import torch
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
