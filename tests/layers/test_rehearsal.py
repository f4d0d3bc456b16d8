"""The joint pass is tried before it is trusted: every way in which samples meet gets two passes."""

from __future__ import annotations

import copy
import logging
import random
from collections import UserDict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import passportize as pp
from passportize.errors import JointPassRefused
from passportize.layers.model import is_passportized, switch_of
from passportize.layers.registry import registered_norms
from passportize.surgery.probing import probe

PASSPORT = pp.Passport.generate("Rehearsal", date="2026-01-01", secret=bytes(range(32)))
ROWS, WIDTH = 24, 12


def tower(norm: type[nn.Module] = nn.BatchNorm1d, **settings: Any) -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, 32), norm(32, **settings), nn.GELU(), nn.Linear(32, 8))


class Tower(nn.Module):
    """One tower; subclasses say how samples go through it."""

    norm: type[nn.Module] = nn.BatchNorm1d

    def __init__(self) -> None:
        super().__init__()
        self.net = tower(self.norm)

    def forward(self, x: Tensor) -> Any:
        return self.net(x)


class Contrastive(Tower):
    def forward(self, x: Tensor) -> Tensor:
        one = F.normalize(self.net(x), dim=1)
        return 10 * one @ F.normalize(self.net(x + 0.1), dim=1).T


class MinibatchDeviation(Tower):
    def forward(self, x: Tensor) -> Tensor:
        y = self.net(x)
        return torch.cat([y, y.std(0).mean().expand(len(y), 1)], 1)


class Mixing(Tower):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(0.7 * x + 0.3 * x.roll(1, 0) if self.training else x)


class Shuffling(Tower):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(0.9 * x + 0.1 * x[torch.randperm(len(x))])


class WithoutParameters(Tower):
    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(self.net(x), None, None, training=True)


class TwoImages(Tower):
    def forward(self, x: Tensor) -> Tensor:
        both = self.net(torch.cat([x, x.flip(1)]))
        return torch.cat(both.chunk(2), 1)


class TimeFirst(nn.Module):
    """Attention over the first axis, the batch on the second."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(WIDTH, 16), nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.embed(x))
        return self.attention(x, x, x, need_weights=False)[0]


class Causal(nn.Module):
    """A recurrent network with time first: the public part never sees what is appended."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.rnn = nn.Linear(WIDTH, 16), nn.LayerNorm(16), nn.GRU(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(self.norm(self.embed(x)))[0]


class LossInside(Tower):
    def forward(self, x: Tensor, labels: Tensor) -> Any:
        scores = self.net(x)
        return {"loss": F.cross_entropy(scores, labels), "scores": scores}


class OnlyLoss(LossInside):
    def forward(self, x: Tensor, labels: Tensor) -> Any:
        return super().forward(x, labels)["loss"]


class ListOfRows(Tower):
    def forward(self, x: list[Tensor]) -> Tensor:
        return self.net(torch.stack([row.mean(0) for row in x]))


class Ragged(Tower):
    """All rows of all samples one behind another, with their lengths."""

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        y = self.net(x)
        return torch.stack([part.mean(0) for part in y.split(lengths.tolist())])


class CountsSamples(Tower):
    """A buffer that says how many samples there were."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return self.net(x)


class Opaque:
    """Holds tensors, and says nothing of it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class TakesOpaque(Tower):
    def forward(self, x: Tensor, other: Opaque) -> Tensor:
        return self.net(x + other.tensor)


class GivesOpaque(Tower):
    def forward(self, x: Tensor) -> Opaque:
        return Opaque(self.net(x))


class Fine(Tower):
    """Dropout by modules and functions, noise, stochastic depth, a written input: all are well."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = F.dropout(x, 0.2) + 0.1 * torch.randn_like(x)
            x = x * torch.rand(len(x), 1).add_(0.5)
        return F.dropout1d(self.net(x).unsqueeze(0), 0.1, self.training).squeeze(0)


class FineTokens(nn.Module):
    """Rows are samples flattened together with tokens; the mask has no batch axis."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(WIDTH, 16), nn.LayerNorm(16)
        self.inner, self.second = nn.Linear(16, 16), nn.BatchNorm1d(16)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.norm(self.embed(x))
        y = torch.softmax(y @ y.transpose(1, 2) + mask, -1) @ y
        return self.second(self.inner(y).flatten(0, 1)).view(y.shape)


def rows(count: int = ROWS, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, *(shape or (WIDTH,)), generator=generator)


LABELS = torch.arange(ROWS) % 8
MEETING: list[tuple[type[nn.Module], tuple[Any, ...], str]] = [
    (Contrastive, (rows(),), "output"),
    (MinibatchDeviation, (rows(),), "output differs"),
    (Mixing, (rows(),), "output differs"),
    (Shuffling, (rows(),), "output differs"),
    (WithoutParameters, (rows(),), "output differs"),
    (TwoImages, (rows(),), "output differs"),
    (TimeFirst, (rows(6, 3, WIDTH),), "output differs"),
    (Causal, (rows(6, 3, WIDTH),), "of the private branch"),
    (LossInside, (rows(), LABELS), "output differs"),
    (OnlyLoss, (rows(), LABELS), "output differs"),
    (ListOfRows, ([rows(3), rows(4), rows(5)],), ""),
    (Ragged, (rows(9), torch.tensor([2, 3, 4])), ""),
    (CountsSamples, (rows(),), "buffers"),
    (TakesOpaque, (rows(), Opaque(rows())), "Opaque"),
    (GivesOpaque, (rows(),), "Opaque"),
]


def check_step(model: nn.Module, plain: nn.Module, inputs: tuple[Any, ...]) -> pp.JointLoss:
    """The public part of a joint step is the plain model's: output, buffers, gradients."""

    def total(output: Any, targets: Any = None) -> Tensor:
        if isinstance(output, Opaque):
            output = output.tensor
        if isinstance(output, dict):
            output = output["loss"]
        return output.sin().sum()

    torch.manual_seed(3)
    loss = pp.joint_loss(model, copy.deepcopy(inputs), None, total)
    loss.public.backward()
    torch.manual_seed(3)
    expected = total(plain(*copy.deepcopy(inputs)))
    expected.backward()
    torch.testing.assert_close(loss.public, expected)
    theirs = dict(plain.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-4, atol=1e-5)
    buffers = dict(model.named_buffers())
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(buffers[name], buffer)
    return loss


@pytest.mark.parametrize("example", [True, False])
@pytest.mark.parametrize(
    ("kind", "inputs", "reason"), MEETING, ids=[kind.__name__ for kind, _, _ in MEETING]
)
def test_where_samples_meet_there_are_two_passes(kind, inputs, reason, example, caplog):
    torch.manual_seed(0)
    model = kind().train()
    plain = copy.deepcopy(model)
    given = copy.deepcopy(inputs) if example else None
    with caplog.at_level(logging.INFO, "passportize"):
        pp.passportize(model, PASSPORT, example_inputs=given)
        assert (switch_of(model).config.passes == "separate") == example
        loss = check_step(model, plain, inputs)
    assert loss.private_output is not None
    assert switch_of(model).config.passes == "separate"
    assert reason in caplog.text and "passes='separate'" in caplog.text


@pytest.mark.parametrize("kind", [Contrastive, Causal, LossInside])
def test_one_pass_is_refused_where_it_was_asked_for(kind):
    inputs = next(inputs for one, inputs, _ in MEETING if one is kind)
    model = kind()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    config = pp.PassportConfig.keyed(passes="doubled")
    with pytest.raises(JointPassRefused, match="passes='separate'"):
        pp.passportize(model, PASSPORT, config=config, example_inputs=inputs)
    assert type(model) is kind and model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    pp.passportize(model, PASSPORT, config=config)
    with pytest.raises(JointPassRefused, match="passes='separate'"):
        pp.joint_loss(model.train(), inputs, None, lambda output, _: output.sum())


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        (Tower, (rows(),)),
        (Tower, (torch.zeros(2, WIDTH),)),
        (Tower, (torch.zeros(1, WIDTH),)),
        (Fine, (rows(),)),
        (FineTokens, (rows(ROWS, 5, WIDTH), torch.zeros(5, 5))),
        (FineTokens, (rows(5, 5, WIDTH), rows(5, 5))),
        (FineTokens, (rows(2, 2, WIDTH), rows(2, 2))),
    ],
)
def test_where_they_do_not_one_pass_is_enough(kind, inputs, caplog):
    model = kind()
    with caplog.at_level(logging.INFO, "passportize"):
        pp.passportize(model, PASSPORT, example_inputs=inputs)
    assert switch_of(model).config.passes == "doubled", caplog.text
    assert switch_of(model).rehearsed


def test_a_table_as_long_as_the_batch_is_known_from_the_example():
    model = FineTokens().train()
    plain = copy.deepcopy(model)
    pp.passportize(model, PASSPORT, example_inputs=(rows(5, 5, WIDTH), rows(5, 5)))
    for count in (8, 5):
        model.zero_grad(), plain.zero_grad()
        loss = check_step(model, plain, (rows(count, 5, WIDTH), rows(5, 5)))
        assert loss.private_output.shape[0] == count
    assert switch_of(model).config.passes == "doubled"


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("example", [True, False])
def test_nothing_is_left_of_the_check(fails, example, monkeypatch):
    class Notes(Fine):
        def __init__(self) -> None:
            super().__init__()
            self.average = nn.Parameter(torch.ones(3), requires_grad=False)
            self.calls, self.last = 0, None

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.last = x
            if self.training:
                with torch.no_grad():
                    self.average.mul_(0.99)
            random.random(), np.random.rand()
            x.add_(1)
            return super().forward(x)

    torch.manual_seed(0)
    model = Notes().eval()
    model.net[2].train()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    x = rows()
    kept = x.clone()
    if not example:
        pp.passportize(model, PASSPORT).train()

    def look() -> tuple[Any, ...]:
        values = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        ours = {name: value for name, value in values.items() if "passport" not in name}
        return (
            {name: value.detach().clone() for name, value in ours.items()},
            [module.training for module in model.modules() if "passport" not in vars(module)],
            (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),
            (model.calls, model.last),
        )

    gradients = [parameter.grad for parameter in model.parameters()]
    before = look()
    if fails:

        def stop(*_: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("passportize.layers.rehearsal.difference", stop)
    raised = pytest.raises(KeyboardInterrupt) if fails else pytest.MonkeyPatch().context()
    with raised:
        if example:
            pp.passportize(model, PASSPORT, example_inputs=x)
        else:
            from passportize.layers.settling import settle_passes

            settle_passes(model, switch_of(model), ((x,), {}))
    after = look()
    assert before[0].keys() == after[0].keys()
    assert not [n for n, value in after[0].items() if not torch.equal(before[0][n], value)]
    assert after[2:] == before[2:] and torch.equal(x, kept)
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=False))
    if fails and example:
        assert not is_passportized(model)
    if not example:
        assert after[1] == before[1]


class WritesInto(Tower):
    """Everything that models do to their inputs."""

    def __init__(self, way: str = "") -> None:
        super().__init__()
        self.way = way

    def forward(self, batch: Any) -> Tensor:
        if self.way == "tensor":
            batch.mul_(2)
            return self.net(batch)
        if self.way == "list":
            return self.net(batch.pop())
        if self.way == "object":
            batch.tensor = self.net(batch.tensor)
            return batch.tensor
        batch["x"] = self.net(batch["x"])
        return batch["x"]


@pytest.mark.parametrize("passes", ["separate", "automatic"])
@pytest.mark.parametrize(
    ("way", "batch"),
    [
        ("tensor", rows()),
        ("list", [rows(), rows()]),
        ("object", Opaque(rows())),
        ("mapping", {"x": rows()}),
        ("user mapping", UserDict({"x": rows()})),
    ],
)
def test_both_branches_see_the_batch_as_it_was_given(way, batch, passes):
    model = WritesInto(way).train()
    config = pp.PassportConfig.keyed(passes=passes, private_fraction=1.0)
    pp.passportize(model, PASSPORT, config=config)
    loss = pp.joint_loss(model, (copy.deepcopy(batch),), None, lambda output, _: output.sum())
    with pp.branch(model, "private"):
        expected = model(copy.deepcopy(batch))
    torch.testing.assert_close(loss.private_output, expected)


class Checkpointed(Contrastive):
    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)


def test_two_passes_advance_no_buffer_twice_and_take_checkpoints():
    class Counts(Checkpointed):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("steps", torch.zeros(()))
            self.first = nn.utils.spectral_norm(nn.Linear(WIDTH, WIDTH))
            self.teacher = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.steps += 1
            self.calls += 1
            if self.training:
                with torch.no_grad():
                    self.teacher.weight.data.mul_(0.9).add_(self.first.weight)
                    self.teacher.bias.mul_(0.9).add_(1)
            return super().forward(self.first(x))

    torch.manual_seed(0)
    model = Counts().train()
    plain = copy.deepcopy(model)
    config = pp.PassportConfig.keyed(private_fraction=1.0)
    pp.passportize(model, PASSPORT, config=config, example_inputs=rows())
    assert switch_of(model).config.passes == "separate"
    for _ in range(2):
        model.zero_grad(), plain.zero_grad()
        loss = check_step(model, plain, (rows(),))
        assert model.calls == plain.calls
        for ours, theirs in zip(
            model.teacher.parameters(), plain.teacher.parameters(), strict=True
        ):
            torch.testing.assert_close(ours, theirs)
    del loss
    private = pp.joint_loss(model, rows(), None, lambda output, _: output.sin().sum()).private
    private.backward()
    assert all(parameter.grad is not None for parameter in model.net.parameters())


@pytest.mark.parametrize("check", [True, False])
def test_a_check_that_is_not_wanted_does_not_happen(check, caplog):
    model = Contrastive()
    with caplog.at_level(logging.INFO, "passportize"):
        pp.passportize(model, PASSPORT, example_inputs=rows(), check=check)
    assert (switch_of(model).config.passes == "separate") == check


def test_models_that_cannot_be_tried_are_named_in_the_log(caplog, monkeypatch):
    monkeypatch.setattr("passportize.layers.rehearsal.LARGEST", 100)
    with caplog.at_level(logging.INFO, "passportize"):
        pp.passportize(Tower(), PASSPORT, example_inputs=rows())
    assert "Tower: its joint pass is not checked: it has" in caplog.text
    with caplog.at_level(logging.INFO, "passportize"), torch.device("meta"):
        model = Tower()
    pp.passportize(model, PASSPORT, example_inputs=torch.zeros(2, WIDTH, device="meta"))
    assert switch_of(model).config.passes == "doubled"


def test_another_optional_input_is_tried_as_well():
    class Optional(Tower):
        def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
            y = self.net(x)
            return y if other is None else y + self.net(other).mean(0)

    model = Optional().train()
    pp.passportize(model, PASSPORT, example_inputs=rows())
    assert switch_of(model).config.passes == "doubled"
    pp.joint_loss(model, (rows(), rows()), None, lambda output, _: output.sum())
    assert switch_of(model).config.passes == "separate"


def test_where_nothing_is_right_one_error_says_what_was_found():
    class Once(Contrastive):
        """Nothing but one pass at a time: what it takes cannot be copied."""

        def forward(self, x: Tensor, once: Any) -> Tensor:
            next(once)
            return super().forward(x)

    model = Once().train()
    pp.passportize(model, PASSPORT)
    with pytest.raises(JointPassRefused, match=r"no joint step .*generator.*copy"):
        pp.joint_loss(model, (rows(), (step for step in range(9))), None, lambda o, _: o.sum())


def test_norms_that_ignore_their_private_factors_are_refused(monkeypatch):
    """The private branch would compute the public one."""
    monkeypatch.setattr(
        registered_norms()[nn.BatchNorm1d],
        "private_norm",
        lambda self, x, scale, shift: F.batch_norm(x, None, None, training=True) + 1,
    )
    for kind in (Tower, Contrastive):
        with pytest.raises(JointPassRefused, match=r"does not depend on the passport in net\.1"):
            pp.passportize(kind(), PASSPORT, example_inputs=rows())


@pytest.mark.parametrize("kind", [Tower, Contrastive])
@pytest.mark.parametrize("check", [True, False])
def test_plan_and_probe_say_which_passes_a_joint_step_takes(kind, check):
    passes = "doubled" if kind is Tower else "separate"
    planned = pp.plan(kind(), example_inputs=rows())
    assert planned.passes == passes and planned.to_dict()["passes"] == passes
    costs = "takes one pass" if kind is Tower else "one joint step in 4 takes two passes"
    assert costs in str(planned)
    assert "first training step" in str(pp.plan(kind()))
    model = pp.passportize(kind(), PASSPORT, example_inputs=rows(), check=check)
    report = probe(model, rows())
    assert report.joint.startswith(passes) and passes in str(report)
    assert not switch_of(model).trained
    config = pp.PassportConfig.keyed(passes="separate")
    model = pp.passportize(kind(), PASSPORT, config=config)
    assert probe(model, rows()).joint == "separate"


@pytest.fixture
def one_process():
    dist = torch.distributed
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist
    dist.destroy_process_group()


def test_no_process_talks_to_another(one_process, caplog):
    class Gathers(Tower):
        def forward(self, x: Tensor) -> Tensor:
            y = self.net(x)
            total = y.detach().sum(0)
            one_process.all_reduce(total)
            return y + total

    model = Gathers().train()
    with caplog.at_level(logging.INFO, "passportize"):
        pp.passportize(model, PASSPORT, example_inputs=rows())
    assert "talks to other processes" in caplog.text and "first training step" in caplog.text
    assert switch_of(model).config.passes == "doubled"
    with caplog.at_level(logging.INFO, "passportize"):
        pp.joint_loss(model, rows(), None, lambda output, _: output.sum())
    assert "it goes unchecked" in caplog.text


def test_gradient_reducers_are_not_told_of_the_check(one_process):
    model = pp.passportize(Tower().train(), PASSPORT)
    told: list[str] = []
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: told.append(name))
    wrapped = nn.parallel.DistributedDataParallel(model)
    loss = pp.joint_loss(wrapped, rows(), LABELS, F.cross_entropy)
    assert switch_of(model).rehearsed and not told
    loss.total.backward()
    assert sorted(told) == sorted(name for name, _ in model.named_parameters())


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiled_model_is_tried_before_it_is_compiled(whole):
    model = Contrastive().train()
    pp.passportize(model, PASSPORT)
    if whole:
        compiled = torch.compile(model, backend="eager")
    else:
        model.compile(backend="eager")
        compiled = model
    loss = pp.joint_loss(compiled, rows(), torch.arange(ROWS), F.cross_entropy)
    assert switch_of(model).config.passes == "separate"
    assert loss.output.shape == (ROWS, ROWS)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.usefixtures("fresh_compiler")
def test_two_compiled_passes_advance_no_buffer_twice():
    class Counts(Contrastive):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("steps", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.steps += 1
            return super().forward(x)

    model = Counts().train()
    config = pp.PassportConfig.keyed(private_fraction=1.0)
    pp.passportize(model, PASSPORT, config=config, example_inputs=rows())
    compiled = torch.compile(model, backend="aot_eager")
    for _ in range(2):
        loss = pp.joint_loss(compiled, rows(), torch.arange(ROWS), F.cross_entropy)
        loss.total.backward()
        assert loss.private is not None
    assert float(model.steps) == 2
