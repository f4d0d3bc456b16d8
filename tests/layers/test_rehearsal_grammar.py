"""Little models drawn out of a grammar: the joint step is the plain model's, or an error of ours.

Drawn are the order of axes, the kind of norm, what happens in the middle (samples that meet in one
way or another, or not), random steps, containers of inputs and outputs, and whether the model
writes into its input.
"""

from __future__ import annotations

import copy
from collections import OrderedDict, UserDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import passportize as pp
from passportize.errors import PassportizeError
from passportize.layers.joint_forward import private_share
from passportize.layers.model import switch_of
from passportize.utils.draws import AlikeDraws
from passportize.utils.frozen import frozen_model
from passportize.utils.trees import tensors_in

PASSPORT = pp.Passport.generate("Grammar", date="2026-01-01", secret=bytes(range(32)))
WIDTH, LENGTH = 16, 3


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclass(frozen=True)
class Parts:
    x: Any
    name: str = "parts"


class Opaque:
    def __init__(self, x: Any) -> None:
        self.x = x


class PerSampleNorm(nn.Module):
    """Groups of channels, whatever the axes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.flatten(0, -2)).view(x.shape)


class LastAxisBatchNorm(nn.Module):
    """Statistics of all that comes before the channels."""

    def __init__(self, affine: bool = True, tracked: bool = True) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH, affine=affine, track_running_stats=tracked)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.flatten(0, -2)).view(x.shape)


NORMS: dict[str, Callable[[], nn.Module]] = {
    "layer": lambda: nn.LayerNorm(WIDTH),
    "batch": LastAxisBatchNorm,
    "batch without statistics": lambda: LastAxisBatchNorm(tracked=False),
    "group": PerSampleNorm,
}

MIDDLES: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": lambda x: x,
    "mean of the batch": lambda x: x - 0.5 * x.mean(0, keepdim=True),
    "deviation of the batch": lambda x: x + x.std(0).mean(),
    "shuffled": lambda x: x + 0.3 * x[torch.randperm(len(x))],
    "rolled": lambda x: x + 0.3 * x.roll(1, 0),
    "batch norm of no module": lambda x: F.batch_norm(
        x.flatten(0, -2), None, None, training=True
    ).view(x.shape),
    "softmax over samples": lambda x: x * x.softmax(0),
    "cumulated": lambda x: x.cumsum(0) / len(x),
    "largest": lambda x: x + x.amax((0, 1), keepdim=True),
    "second axis": lambda x: x + x.mean(1, keepdim=True),
    "dropout": lambda x: F.dropout(x, 0.3),
    "noise by sample": lambda x: x * torch.rand(len(x), 1, 1).add(0.5),
    "noise": lambda x: x + 0.1 * torch.randn_like(x),
}

OUTPUTS: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda y: y,
    "tuple": lambda y: (y, None, y.mean((1, 2))),
    "named tuple": lambda y: Pair(y, [y * 2]),
    "mapping": lambda y: OrderedDict(y=y, name="y"),
    "user mapping": lambda y: UserDict({"y": y}),
    "dataclass": Parts,
    "opaque": Opaque,
    "loss": lambda y: y.square().mean(),
    "loss beside": lambda y: {"loss": y.square().mean(), "y": y},
    "similarity": lambda y: y.flatten(1) @ y.flatten(1).T,
    "batch second": lambda y: y.transpose(0, 1),
    "flat": lambda y: y.flatten(0, 1),
    "first only": lambda y: y[:1],
}

INPUTS: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda x: x,
    "list": lambda x: [x],
    "mapping": lambda x: {"x": x},
    "user mapping": lambda x: UserDict(x=x),
    "dataclass": Parts,
    "opaque": Opaque,
    "samples": lambda x: list(x),
}


@dataclass(frozen=True)
class Kind:
    """What is drawn."""

    norm: str = "layer"
    between: str = "nothing"
    end: str = "nothing"
    output: str = "tensor"
    container: str = "tensor"
    time_first: bool = False
    writes: bool = False
    unbound: bool = False
    checkpointed: bool = False
    counts: bool = False
    two_views: bool = False


class Drawn(nn.Module):
    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.kind = kind
        self.embed, self.norm = nn.Linear(WIDTH, WIDTH), NORMS[kind.norm]()
        self.inner, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4)
        self.free = LastAxisBatchNorm(affine=False) if kind.unbound else nn.Identity()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, batch: Any) -> Any:
        x, put = self.unpacked(batch)
        if self.kind.writes:
            put(x.mul_(1.5) if isinstance(batch, Tensor) else x * 1.5)
            x = x if isinstance(batch, Tensor) else x * 1.5
        if self.kind.counts:
            self.seen += len(x)
        if self.kind.time_first:
            x = x.transpose(0, 1)
        y = (
            checkpoint(self.body, x, use_reentrant=False)
            if self.kind.checkpointed
            else self.body(x)
        )
        if self.kind.time_first:
            y = y.transpose(0, 1)
        return OUTPUTS[self.kind.output](y)

    def unpacked(self, batch: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
        if isinstance(batch, Tensor):
            return batch, lambda x: x
        if isinstance(batch, list) and len(batch) > 1:
            return torch.stack(batch), lambda x: batch.clear()
        if isinstance(batch, list):
            return batch[0], lambda x: batch.__setitem__(0, x)
        if isinstance(batch, (dict, UserDict)):
            return batch["x"], lambda x: batch.__setitem__("x", x)
        return batch.x, lambda x: object.__setattr__(batch, "x", x)

    def body(self, x: Tensor) -> Tensor:
        if self.kind.two_views:
            one, other = self.norm(self.embed(torch.cat([x, x.flip(-1)]))).chunk(2)
            x = one * other
        else:
            x = self.norm(self.embed(x))
        x = MIDDLES[self.kind.between](x)
        return MIDDLES[self.kind.end](self.head(self.free(self.inner(x.relu()))))


def loss_of(output: Any, _: Any = None) -> Tensor:
    tree = output.x if isinstance(output, Opaque) else output
    return torch.stack([part.sin().sum() for part in tensors_in(tree)]).sum()


def check_promise(kind: Kind, rows: int, shown: int, with_example: bool) -> str:
    """Public loss, buffers and gradients of a joint step are the plain model's; which passes."""
    torch.manual_seed(0)
    model = Drawn(kind).double().train()
    plain = copy.deepcopy(model)

    def batch(count: int) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(count)
        x = torch.randn(count, LENGTH, WIDTH, generator=generator, dtype=torch.float64)
        return (INPUTS[kind.container](x),)

    given_first = batch(shown) if with_example else None
    config = pp.PassportConfig.keyed(private_fraction=0.5)
    try:
        pp.passportize(model, PASSPORT, config=config, example_inputs=given_first)
        if not with_example:
            with settled_without_a_trace(model):
                pp.joint_loss(model, batch(rows), None, loss_of)
        switch = switch_of(model)
        doubled = switch.config.passes == "doubled"
        torch.manual_seed(1)
        with AlikeDraws(rows, private_share(switch, rows) if doubled else 0):
            loss = pp.joint_loss(model, batch(rows), None, loss_of)
            loss.public.backward(retain_graph=True)
    except PassportizeError as error:
        return type(error).__name__
    torch.manual_seed(1)
    with AlikeDraws(rows):
        expected = loss_of(plain(*batch(rows)))
        expected.backward()
    torch.testing.assert_close(loss.public, expected)
    theirs = dict(plain.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, msg=name)
    buffers = dict(model.named_buffers())
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(buffers[name], buffer, msg=name)
    if loss.private is not None and loss.private.requires_grad:
        loss.private.backward()
    return switch.config.passes


@contextmanager
def settled_without_a_trace(model: nn.Module) -> Iterator[None]:
    """A first training step whose findings stay, and nothing else of it."""
    with frozen_model(model, values=True):
        yield


KINDS = st.builds(
    Kind,
    norm=st.sampled_from(list(NORMS)),
    between=st.sampled_from(list(MIDDLES)),
    end=st.sampled_from(list(MIDDLES)),
    output=st.sampled_from(list(OUTPUTS)),
    container=st.sampled_from(list(INPUTS)),
    time_first=st.booleans(),
    writes=st.booleans(),
    unbound=st.booleans(),
    checkpointed=st.booleans(),
    counts=st.booleans(),
    two_views=st.booleans(),
)


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(kind=KINDS, rows=st.integers(5, 12), shown=st.integers(1, 6), with_example=st.booleans())
@example(Kind(), 8, 2, True)
def test_a_joint_step_is_the_plain_models_or_an_error_of_ours(kind, rows, shown, with_example):
    check_promise(kind, rows, shown, with_example)


def test_each_way_alone():
    """Which passes each single choice takes: two where samples meet, one where they do not."""
    fine = {"nothing", "second axis", "dropout", "noise by sample", "noise"}
    for name in MIDDLES:
        passes = check_promise(Kind(between=name), 8, 4, True)
        assert passes == ("doubled" if name in fine else "separate"), name
    for name in OUTPUTS:
        expected = "doubled" if list(OUTPUTS).index(name) < 6 else "separate"
        assert check_promise(Kind(output=name), 8, 4, True) == expected, name
    for name in INPUTS:
        expected = "separate" if name in ("opaque", "samples") else "doubled"
        assert check_promise(Kind(container=name, writes=True), 8, 4, True) == expected, name
    for norm in NORMS:
        assert check_promise(Kind(norm=norm, checkpointed=True), 8, 4, True) == "doubled", norm
        changed = replace(Kind(norm=norm), time_first=True)
        assert check_promise(changed, 8, 4, True) in ("doubled", "separate"), norm
    assert check_promise(Kind(counts=True), 8, 4, True) == "separate"
    assert check_promise(Kind(two_views=True), 8, 4, True) == "separate"
    assert check_promise(Kind(unbound=True), 8, 4, True) == "doubled"
