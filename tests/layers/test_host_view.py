"""Norms with more than a forward: helpers, forwards on the object, computed factors, statistics set
anew. The private branch of all of them runs on the private factors."""

from __future__ import annotations

import copy
import functools
import io
from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune

import passportize as pp
from passportize.errors import (
    BranchLost,
    BranchMisuse,
    DegenerateSite,
    JointPassRefused,
    SurgeryError,
)
from passportize.layers.model import passport_layers, switch_of
from passportize.release.claim import claim_of
from passportize.signature.site import Role
from passportize.surgery.probing import probe
from tests.support.round_trip import ModelSnapshot, assert_round_trip, assert_same_bits

PASSPORT = pp.Passport.generate("Norms", date="2026-11-28", secret=bytes(range(32)))
WIDTH = 32


class TwoLayouts(nn.LayerNorm):
    """As in networks of the ConvNeXt kind: channels last, or turned there and back."""

    def _channels_last(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 2:
            return self._channels_last(x)
        return self._channels_last(x.transpose(1, -1)).transpose(1, -1)


class ManySteps(nn.BatchNorm1d):
    """As spikingjelly's: one step, or a sequence of them folded into the batch."""

    step_mode = "s"

    def super_forward(self, x: Tensor) -> Tensor:
        return super().forward(x)

    def forward(self, x: Tensor) -> Tensor:
        if self.step_mode == "s":
            return self.super_forward(x)
        return _folded(x.unsqueeze(0), self.super_forward).squeeze(0)


def _folded(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    return function(x.flatten(0, 1)).view(x.shape)


class ManyStepsNorm(ManySteps):
    """The same in the other mode."""

    step_mode = "m"


class PropertyNorm(nn.Module):
    """Its factors reach the forward through a property and a static helper."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        return self.weight.float(), self.bias.float()

    @staticmethod
    def _affine(x: Tensor, factors: tuple[Tensor, Tensor]) -> Tensor:
        return x * factors[0] + factors[1]

    def forward(self, x: Tensor) -> Tensor:
        return self._affine(F.layer_norm(x, x.shape[-1:]), self.factors)


class ByName(nn.LayerNorm):
    """Asks for its tensors by name."""

    def forward(self, x: Tensor) -> Tensor:
        found = dict(self.named_parameters())
        return F.layer_norm(x, self.normalized_shape, found["weight"], found["bias"], self.eps)


class ByStateDict(nn.LayerNorm):
    """Likewise, another way."""

    def forward(self, x: Tensor) -> Tensor:
        found = self.state_dict(keep_vars=True)
        return F.layer_norm(x, self.normalized_shape, found["weight"], found["bias"], self.eps)


class StatisticsSetAnew(nn.Module):
    """A batch norm as people write it: running statistics are new tensors at every step."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))
        self.beta = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.running_mean, self.running_var
        if self.training:
            mean, variance = x.mean(0), x.var(0, unbiased=False)
            self.running_mean = 0.9 * self.running_mean + 0.1 * mean.detach()
            self.running_var = 0.9 * self.running_var + 0.1 * variance.detach()
        return (x - mean) / (variance + 1e-5).sqrt() * self.gamma + self.beta


class StatisticsNorm(StatisticsSetAnew):
    """A name by which it is taken for a norm."""


def patched_forward(self: nn.LayerNorm, x: Tensor) -> Tensor:
    """As Liger-Kernel sets it on live norms."""
    return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


def patched_helper(self: TwoLayouts, x: Tensor) -> Tensor:
    return 2 * F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


def patched() -> nn.Module:
    norm = nn.LayerNorm(WIDTH)
    norm.forward = MethodType(patched_forward, norm)
    return norm


def with_patched_helper() -> nn.Module:
    norm = TwoLayouts(WIDTH)
    norm._channels_last = MethodType(patched_helper, norm)
    return norm


def parametrized(norm: nn.Module, name: str) -> nn.Module:
    parametrize.register_parametrization(norm, name, nn.Softplus())
    return norm


def pruned(norm: nn.Module, name: str) -> nn.Module:
    prune.random_unstructured(norm, name, 0.3)
    with torch.no_grad():  # or torch does not copy the masked tensor
        for hook in norm._forward_pre_hooks.values():
            hook(norm, ())
    return norm


def xlstm() -> nn.Module:
    return pytest.importorskip("transformers.models.xlstm.modeling_xlstm").xLSTMRMSNorm(WIDTH)


NORMS: dict[str, Callable[[], nn.Module]] = {
    "two layouts": lambda: TwoLayouts(WIDTH),
    "one step": lambda: ManySteps(WIDTH),
    "many steps": lambda: ManyStepsNorm(WIDTH),
    "property": lambda: PropertyNorm(WIDTH),
    "by name": lambda: ByName(WIDTH),
    "by state dict": lambda: ByStateDict(WIDTH),
    "statistics set anew": lambda: StatisticsNorm(WIDTH),
    "xlstm": xlstm,
    "patched": patched,
    "patched helper": with_patched_helper,
    "parametrized LayerNorm": lambda: parametrized(nn.LayerNorm(WIDTH), "weight"),
    "parametrized shift": lambda: parametrized(nn.GroupNorm(4, WIDTH), "bias"),
    "parametrized BatchNorm": lambda: parametrized(nn.BatchNorm1d(WIDTH), "weight"),
    "parametrized helper": lambda: parametrized(TwoLayouts(WIDTH), "weight"),
    "parametrized gamma": lambda: parametrized(StatisticsNorm(WIDTH), "gamma"),
    "parametrized scale and shift": lambda: parametrized(
        parametrized(nn.LayerNorm(WIDTH), "weight"), "bias"
    ),
    "pruned LayerNorm": lambda: pruned(nn.LayerNorm(WIDTH), "weight"),
    "pruned BatchNorm": lambda: pruned(nn.BatchNorm1d(WIDTH), "weight"),
    "pruned beta": lambda: pruned(StatisticsNorm(WIDTH), "beta"),
}


def network(norm: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, WIDTH), norm, nn.GELU(), nn.Linear(WIDTH, 5))


def inputs() -> Tensor:
    return torch.randn(16, 16, generator=torch.Generator().manual_seed(1))


def protected(norm: nn.Module) -> nn.Sequential:
    return pp.passportize(network(norm), PASSPORT, example_inputs=inputs())


def step(model: nn.Module) -> pp.JointLoss:
    loss = pp.joint_loss(model.train(), inputs(), torch.arange(16) % 5, F.cross_entropy)
    loss.total.backward()
    return loss


def restored(model: nn.Module) -> nn.Module:
    switch_of(model).trained = False  # nothing worth a warning is lost
    return pp.unpassportize(model)


def outputs(model: nn.Module, which: str) -> Tensor:
    model.eval()
    with torch.no_grad(), pp.branch(model, which):
        result: Tensor = model(inputs())
    return result


@pytest.mark.parametrize("name", NORMS)
def test_round_trip_and_joint_step(name: str) -> None:
    """Public bits stay, the private output differs, gradients flow, all is restored exactly."""
    assert len(assert_round_trip(network(NORMS[name]()), PASSPORT, inputs())) == 1


@pytest.mark.parametrize("name", NORMS)
def test_private_factors_do_all_of_the_work(name: str) -> None:
    """The private output is what the plain norm gives with the private factors as its own."""
    model = protected(NORMS[name]())
    layer = model[1]
    x = model[0](inputs()).detach()
    twin = copy.deepcopy(model)
    scale, shift, _ = layer.private_factors(x)
    plain = pp.unpassportize(twin)[1].eval()
    expected = _with_factors(plain, layer.scale_name, scale, layer.shift_name, shift)(x)
    model.eval()
    with pp.branch(model, "private"):
        actual = layer(x)
    assert bool((scale != getattr(layer, layer.scale_name)).any())
    torch.testing.assert_close(actual, expected)


def _with_factors(
    norm: nn.Module, scale_name: str, scale: Tensor, shift_name: str, shift: Tensor | None
) -> nn.Module:
    """A plain norm in which other tensors take the place of its own, however those are made."""
    for name, value in ((scale_name, scale), (shift_name, shift)):
        if parametrize.is_parametrized(norm, name):
            parametrize.remove_parametrizations(norm, name)
        elif name in [getattr(h, "_tensor_name", "") for h in norm._forward_pre_hooks.values()]:
            prune.remove(norm, name)
        if value is not None:
            setattr(norm, name, nn.Parameter(value.detach()))
    return norm


@pytest.mark.parametrize("name", NORMS)
def test_copies_and_state_dicts(name: str) -> None:
    """A copy has the same numbers, its own weights and branch, and can be restored by itself."""
    model = protected(NORMS[name]())
    expected = {which: outputs(model, which) for which in ("public", "private")}
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    for which, output in expected.items():
        assert not torch.equal(outputs(model, which), output)
        assert_same_bits(output, outputs(twin, which), which)
    assert not torch.equal(step(twin).sign, torch.zeros(()))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = protected(NORMS[name]())
    other.load_state_dict(torch.load(file))
    for which in expected:
        assert_same_bits(outputs(model, which), outputs(other, which), which)
    plain = restored(twin)
    classes = [type(module).__name__ for module in network(NORMS[name]()).modules()]
    assert [type(module).__name__ for module in plain.modules()] == classes
    pp.unpassportize(copy.deepcopy(other))
    step(other)


def test_private_statistics_count_as_the_public_ones() -> None:
    for kind in (ManySteps, ManyStepsNorm, StatisticsNorm):
        plain, model = network(kind(WIDTH)), protected(kind(WIDTH))
        branch = model[1].passport
        start = branch.running_mean
        rows = len(step(model).private_output)
        plain.train()(inputs())
        assert_same_bits(plain[1].running_mean, model[1].running_mean, "public")
        assert branch.running_mean is start, "its buffer was replaced"
        private = model[0](inputs()[:rows]).detach().mean(0) * 0.1
        torch.testing.assert_close(branch.running_mean, private)


# --- parametrizations and masks that are put on or taken off while branches are in ------------


@pytest.mark.parametrize("name", [name for name in NORMS if "parametrized" in name])
def test_parametrization_taken_off_after_surgery(name: str) -> None:
    model = protected(NORMS[name]())
    norm = model[1]
    step(model)
    public = outputs(model, "public")
    for tensor in list(norm.parametrizations):
        parametrize.remove_parametrizations(norm, tensor)
    assert_same_bits(public, outputs(model, "public"), name)
    assert probe(model, inputs()).private_differs
    step(model)
    copy.deepcopy(model)
    assert claim_of(model).bits == WIDTH
    restored(model)
    assert type(norm) in (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d, TwoLayouts, StatisticsNorm)
    assert not parametrize.is_parametrized(norm)
    model(inputs())


@pytest.mark.parametrize("first", [False, True], ids=["plain before", "parametrized before"])
def test_parametrization_put_on_after_surgery(first: bool) -> None:
    norm = nn.LayerNorm(WIDTH)
    model = protected(parametrized(norm, "weight") if first else norm)
    parametrized(norm, "bias")
    step(model)
    assert probe(model, inputs()).private_differs
    public = outputs(model, "public")
    twin = copy.deepcopy(model)
    for one in (twin, model):
        restored(one)
        assert_same_bits(public, one.eval()(inputs()), "restored")
        assert type(one[1]).__name__ == "ParametrizedLayerNorm"
    copy.deepcopy(model)(inputs())
    for tensor in list(norm.parametrizations):
        parametrize.remove_parametrizations(norm, tensor)
    assert type(norm) is nn.LayerNorm


def test_masks_put_on_and_taken_off_after_surgery() -> None:
    norm = nn.LayerNorm(WIDTH)
    model = protected(norm)
    prune.random_unstructured(norm, "weight", 0.3)
    step(model)
    assert probe(model, inputs()).private_differs
    prune.remove(norm, "weight")
    step(model)
    restored(model)
    assert type(norm) is nn.LayerNorm and list(norm.state_dict()) == ["bias", "weight"]


# --- forwards on the object that nobody can run apart -----------------------------------------


def _hooked(norm: nn.Module) -> None:
    """As accelerate puts its hooks on a module."""
    old = norm.forward
    norm._old_forward = old

    def forward(module: nn.Module, *args: Any) -> Any:
        return module._old_forward(*args)

    norm.forward = functools.update_wrapper(functools.partial(forward, norm), old)


def _unhooked(norm: nn.Module) -> None:
    norm.forward = norm.__dict__.pop("_old_forward")


def test_foreign_forward_is_left_out_with_a_reason() -> None:
    norm = nn.LayerNorm(WIDTH)
    _hooked(norm)
    model = network(norm)
    before = ModelSnapshot.of(model)
    (site,) = pp.plan(model, example_inputs=inputs()).sites
    assert site.role is Role.SKIPPED and "was set on the object" in site.reason
    with pytest.raises(DegenerateSite, match="was set on the object"):
        pp.passportize(model, PASSPORT, example_inputs=inputs())
    before.check(model)


def test_wrapper_put_on_later_runs_both_branches_and_comes_off_first() -> None:
    model = network(nn.LayerNorm(WIDTH))
    before = ModelSnapshot.of(model)
    pp.passportize(model, PASSPORT, example_inputs=inputs())
    _hooked(model[1])
    loss = step(model)
    assert not torch.equal(loss.private_output, loss.output[: len(loss.private_output)])
    with pytest.raises(SurgeryError, match="take the wrapper off first"):
        restored(model)
    _unhooked(model[1])
    assert probe(model, inputs()).private_differs
    pp.unpassportize(model)
    for parameter in model.parameters():
        parameter.grad = None
    before.check(model.train())


def test_accelerate_hooks() -> None:
    hooks = pytest.importorskip("accelerate.hooks")
    model = protected(nn.LayerNorm(WIDTH))
    expected = step(model).private_output
    hooks.add_hook_to_module(model[1], hooks.ModelHook())
    assert_same_bits(expected, step(model).private_output, "private")
    hooks.remove_hook_from_module(model, recurse=True)
    assert "forward" not in vars(restored(model)[1])


@pytest.mark.parametrize("how", ["method", "function", "partial"])
def test_forward_replaced_later_is_noticed(how: str) -> None:
    model = protected(nn.LayerNorm(WIDTH))
    norm = model[1]
    norm.forward = {
        "method": MethodType(patched_forward, norm),
        "function": lambda x: patched_forward(norm, x),
        "partial": functools.partial(patched_forward, norm),
    }[how]
    with pytest.raises(BranchLost, match="set on the object after"):
        step(model)


class CachedNorm(nn.LayerNorm):
    """Keeps its factors in a place of its own, where no view can replace them."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.kept = [self.weight]

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.kept[0], self.bias, self.eps)


class TableNorm(TwoLayouts):
    """Finds its helper in a table that was made of it."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.table = {2: self._channels_last}

    def forward(self, x: Tensor) -> Tensor:
        return self.table[x.dim()](x)


class FoldedNorm(nn.LayerNorm):
    """Keeps its scale aside once it is in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and not hasattr(self, "folded"):
            self.folded = self.weight.detach().clone()
        scale = self.weight if self.training else self.folded
        return F.layer_norm(x, self.normalized_shape, scale, self.bias, self.eps)


class CachedInPlaceNorm(CachedNorm):
    """Writes into its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x.copy_(super().forward(x.clone()))


class StrictNorm(nn.LayerNorm):
    """Takes nothing for a parameter that is none."""

    def forward(self, x: Tensor) -> Tensor:
        scale = self.get_parameter("weight")
        return F.layer_norm(x, self.normalized_shape, scale, self.bias, self.eps)


@pytest.mark.parametrize("kind", [CachedNorm, CachedInPlaceNorm, TableNorm])
def test_private_branch_that_would_be_the_public_one_is_refused(kind: type[nn.Module]) -> None:
    with pytest.raises((BranchMisuse, JointPassRefused), match="would compute the public one"):
        step(protected(kind(WIDTH)))


def test_scale_that_is_kept_aside_later_is_noticed_then() -> None:
    model = protected(FoldedNorm(WIDTH))
    step(model)
    outputs(model, "public")
    with pytest.raises(BranchMisuse, match="would compute the public one"):
        outputs(model, "private")


def test_forward_that_takes_no_other_factors_is_refused() -> None:
    with pytest.raises((BranchMisuse, JointPassRefused), match="cannot run with other factors"):
        step(protected(StrictNorm(WIDTH)))


def test_passport_layers_are_found_whatever_the_class() -> None:
    for make in NORMS.values():
        assert list(passport_layers(protected(make()))) == ["1"]
