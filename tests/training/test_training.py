"""Joint training: the doubled forward pass against two passes of its own, in float64."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import passportize as pp
from passportize.errors import (
    BranchLost,
    BranchMisuse,
    InvalidArgument,
    NotPassportized,
    PassportLocked,
    WrongPassport,
)
from passportize.layers.joint_forward import JointOutput
from passportize.layers.model import passport_layers, switch_of
from passportize.layers.switch import Pass
from passportize.release.audit import is_clean
from passportize.surgery.attach import detach
from passportize.training.criterion import JointCriterion, JointMeter
from passportize.training.loss import train_jointly

PASSPORT = pp.Passport.generate("Trainer", date="2026-01-01", secret=bytes(range(32)))
CLASSES = 3


class Small(nn.Module):
    """Batch, group and layer norm; the middle can be checkpointed."""

    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, stride=2, padding=1),
            nn.GroupNorm(3, 12),
        )
        self.project = nn.Linear(12, 16)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, CLASSES)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.reentrant is None or not self.training:
            x = self.body(x)
        else:
            x = checkpoint(self.body, x, use_reentrant=self.reentrant)
        return self.head(self.norm(self.project(x.mean((2, 3)))))


def small(
    config: pp.PassportConfig | None = None,
    reentrant: bool | None = None,
    dtype: torch.dtype = torch.float64,
    where: str | None = None,
    kind: type[Small] | None = None,
) -> Small:
    torch.manual_seed(1)
    model = (kind or Small)(reentrant).to(dtype)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    inputs = torch.linspace(-1, 1, 2 * 3 * 64, dtype=dtype).reshape(2, 3, 8, 8)
    return pp.passportize(
        model, PASSPORT, config=config, where=where, example_inputs=inputs
    ).train()


def batch(rows: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 3, 8, 8, generator=generator, dtype=torch.float64)
    return x, torch.arange(rows) % CLASSES


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {n: b.clone() for n, b in model.named_buffers() if "running" in n}


def two_passes(model: Small, x: Tensor, y: Tensor, rows: int) -> Tensor:
    """The joint loss as its definition says: one pass for each branch, then the sign loss."""
    loss = F.cross_entropy(model(x), y)
    config = switch_of(model).config
    if config.has_private_pass:
        with pp.branch(model, "private"):
            private = model(x[:rows])
        weight = config.private_weight * math.sqrt(rows / min(len(x), 32))
        loss = loss + weight * F.cross_entropy(private, y[:rows])
    for layer in passport_layers(model).values():
        loss = loss + layer.private_factors()[2]
    return loss


CONFIGS = {
    "keyed": pp.PassportConfig.keyed(private_fraction=0.5, private_weight=0.7, sign_every=1),
    "paper": pp.PassportConfig.paper(),
    "signature": pp.PassportConfig.signature(sign_every=1),
}
ROWS = {"keyed": 8, "paper": 16, "signature": 0}


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


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_of_separate_passes_is_refused(reentrant: bool) -> None:
    model = small(pp.PassportConfig.keyed(passes="separate"), reentrant)
    x, y = batch()
    with pytest.raises(BranchMisuse, match="checkpointing"):
        pp.joint_loss(model, x, y, F.cross_entropy).total.backward()


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


def test_a_bfloat16_model_trains_jointly() -> None:
    model = small(CONFIGS["keyed"]).to(torch.bfloat16)
    x, y = batch()
    loss = pp.joint_loss(model, x.bfloat16(), y, F.cross_entropy)
    loss.total.backward()
    assert loss.sign.dtype == torch.float32
    assert all(torch.isfinite(value).all() for value in gradients(model).values())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo looks at it
def test_compiled_gradients_are_the_eager_ones_without_a_graph_break() -> None:
    import torch._dynamo as dynamo

    dynamo.reset()
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
    dynamo.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize(
    "config",
    [
        pp.PassportConfig.signature(sign_every=3),
        pp.PassportConfig.keyed(private_every=3, private_fraction=1.0),
    ],
    ids=["sign_every", "private_every"],
)
def test_a_step_counter_is_no_new_program_at_every_step(config: pp.PassportConfig) -> None:
    import torch._dynamo as dynamo
    from torch._dynamo.testing import CompileCounterWithBackend

    dynamo.reset()
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
    dynamo.reset()


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
    # Not what a step with sign loss would have given.
    learning = small(make(sign_weight=0.0, response_weight=0.0, private_fraction=1.0))
    pp.joint_loss(learning, x, y, F.cross_entropy).total.backward()
    weight = "project.weight"
    assert not torch.allclose(gradients(learning)[weight], gradients(models["frozen"])[weight])


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


def test_every_branch_feeds_its_own_statistics_only() -> None:
    model = small(pp.PassportConfig.keyed(private_fraction=0.5))
    plain = copy.deepcopy(model)
    detach(plain)
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


def test_the_private_branch_runs_at_every_third_step_on_its_share() -> None:
    model = small(pp.PassportConfig.keyed(private_every=3, private_fraction=0.25))
    x, y = batch(40)
    rows = []
    for _ in range(4):
        loss = pp.joint_loss(model, x, y, F.cross_entropy)
        rows.append(0 if loss.private_output is None else len(loss.private_output))
        assert (loss.private is None) == (rows[-1] == 0)
    assert rows == [10, 0, 0, 10]


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


def test_a_step_without_private_pass_gives_every_parameter_a_gradient() -> None:
    """DDP waits for all of them."""
    model = small(pp.PassportConfig.paper(private_every=2))
    x, y = batch()
    for _ in range(2):
        model.zero_grad()
        pp.joint_loss(model, x, y, F.cross_entropy).total.backward()
        assert gradients(model).keys() == dict(model.named_parameters()).keys()


def test_train_jointly_lasts_and_criterion_takes_either_output() -> None:
    model = train_jointly(small(CONFIGS["keyed"]))
    meter = JointMeter()
    criterion = JointCriterion(nn.CrossEntropyLoss(), meter=meter)
    x, y = batch()
    for _ in range(2):
        output = model(x)
        assert isinstance(output, JointOutput)
        loss = criterion(output, y)
    parts = meter.read()
    private = 0.7 * math.sqrt(0.5) * parts["private_loss"]
    assert parts.keys() == {"sign_loss", "public_loss", "private_loss", "private_top1"}
    assert 0 <= parts["private_top1"] <= 100
    assert loss.item() == pytest.approx(
        parts["public_loss"] + private + parts["sign_loss"], rel=0.2
    )
    assert meter.read() == {}
    model.eval()
    plain = model(x)
    assert plain.shape == (16, CLASSES)
    assert torch.equal(criterion(plain, y), F.cross_entropy(plain, y))
    assert train_jointly(model, False).train()(x).shape == (16, CLASSES)


def test_criterion_cuts_soft_targets_and_knows_jensen_shannon() -> None:
    timm_loss = pytest.importorskip("timm.loss")
    model = train_jointly(small(pp.PassportConfig.keyed(private_fraction=0.5, sign_weight=0.0)))
    x, y = batch(18)
    joint = model(x)
    soft = F.one_hot(y, CLASSES).double() * 0.8 + 0.1
    loss = JointCriterion(timm_loss.SoftTargetCrossEntropy())(joint, soft)
    expected = timm_loss.SoftTargetCrossEntropy()
    weight = 0.5 * math.sqrt(9 / 18)
    torch.testing.assert_close(
        loss, expected(joint.public, soft) + weight * expected(joint.private, soft[:9])
    )
    jensen = timm_loss.JsdCrossEntropy(num_splits=3, smoothing=0.0)
    loss = JointCriterion(jensen)(joint, y)
    expected = jensen(joint.public, y) + weight * F.cross_entropy(joint.private, y[:9])
    torch.testing.assert_close(loss, expected)


def test_a_criterion_must_return_one_number() -> None:
    x, y = batch()
    with pytest.raises(InvalidArgument, match="one number"):
        pp.joint_loss(small(), x, y, nn.CrossEntropyLoss(reduction="none"))


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


def test_a_lost_layer_is_noticed_by_name() -> None:
    model = train_jointly(small())
    model.stem[1] = nn.BatchNorm2d(8).double()
    with pytest.raises(BranchLost, match=r"stem\.1 lost its private branch"):
        model(batch()[0])


def test_a_part_called_by_itself_is_public() -> None:
    model = train_jointly(small())
    x, _ = batch()
    model(x)
    assert model.stem(x).shape[0] == 16


def test_misuse_is_named() -> None:
    x, y = batch()
    model = small()
    with pytest.raises(BranchMisuse, match="eval mode"):
        pp.joint_loss(model.eval(), x, y, F.cross_entropy)
    with pytest.raises(InvalidArgument, match="callable"):
        pp.joint_loss(model, x, y, None)
    with pytest.raises(NotPassportized):
        train_jointly(nn.Linear(2, 2))


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_late_doubling_runs_the_trunk_once(reentrant: bool | None) -> None:
    config = pp.PassportConfig.keyed(private_fraction=0.5)
    late, reference = (small(config, kind, where="body*") for kind in (reentrant, None))
    assert switch_of(late).entry == "body"
    assert set(passport_layers(late)) == {"body.1", "body.4"}
    x, y = batch()
    seen = []
    late.stem.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    loss = pp.joint_loss(late, x, y, F.cross_entropy)
    loss.total.backward()
    assert seen == [16]

    def rest(h: Tensor) -> Tensor:
        return reference.head(reference.norm(reference.project(reference.body(h).mean((2, 3)))))

    trunk = reference.stem(x)
    expected = F.cross_entropy(rest(trunk), y)
    with pp.branch(reference, "private"):
        weight = config.private_weight * math.sqrt(8 / 16)
        expected = expected + weight * F.cross_entropy(rest(trunk[:8]), y[:8])
    for layer in passport_layers(reference).values():
        expected = expected + layer.private_factors()[2]
    expected.backward()
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-12)
    for key, gradient in gradients(late).items():
        theirs = gradients(reference)[key]
        torch.testing.assert_close(gradient, theirs, rtol=1e-9, atol=1e-11, msg=key)
    if reentrant is None:
        for key, value in statistics(late).items():
            torch.testing.assert_close(value, statistics(reference)[key], rtol=1e-12, atol=1e-13)
    switch_of(late).saved = True
    pp.unpassportize(late)
    assert is_clean(late)


class Skipping(Small):
    """What comes before the body is used behind it, so samples cannot be appended in between."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        inner = self.body(x)
        return self.head(self.norm(self.project(inner.mean((2, 3))))) + x.mean((1, 2, 3))[:, None]


class WithHead(Small):
    """In training there is a second output, from before the body."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return (out, self.stem(x).mean((2, 3))) if self.training else out


class Repeating(Small):
    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return super().forward(x[:, :3]) + self.body(x).mean()


@pytest.mark.parametrize("kind", [Skipping, WithHead, Repeating])
def test_without_a_single_late_entry_the_root_doubles(kind: type[Small]) -> None:
    model = small(None, where="body*", kind=kind)
    assert switch_of(model).entry == ""
    assert "stem.1" in passport_layers(model)
