"""The round-trip contract: what surgery may change in a model, and what is left of it afterwards.

``assert_round_trip`` is used by every test that passportizes a model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import passportize as pp
from passportize.layers.computed import sources_of
from passportize.layers.joint_forward import RootHooks
from passportize.layers.model import passport_layers, switch_of
from passportize.signature.site import Role
from passportize.surgery import branches as surgery_branches
from passportize.utils.frozen import frozen_model, frozen_random_state
from passportize.utils.trees import tensors_in

__all__ = [
    "ModelSnapshot",
    "assert_failure_leaves_no_trace",
    "assert_joint_step",
    "assert_round_trip",
    "assert_same_bits",
    "forward_outputs",
    "is_host_key",
    "wake",
]

SEED = 20201206


@dataclass
class ModelSnapshot:
    """Everything about a model that surgery must not change; holds references, so ids stay."""

    model: nn.Module
    modules: list[tuple[str, nn.Module, type]] = field(default_factory=list)
    attributes: list[tuple[str, nn.Module, list[tuple[str, Any]]]] = field(default_factory=list)
    contents: list[tuple[str, Any, list[Any]]] = field(default_factory=list)
    parameters: list[tuple[str, Tensor, bool, Tensor | None]] = field(default_factory=list)
    state: dict[str, Tensor] = field(default_factory=dict)
    metadata: Any = None
    flags: list[bool] = field(default_factory=list)

    @classmethod
    def of(cls, model: nn.Module) -> ModelSnapshot:
        """Take note of a model."""
        note = cls(model)
        for name, module in model.named_modules(remove_duplicate=False):
            note.modules.append((name, module, type(module)))
            note.attributes.append((name, module, list(vars(module).items())))
            for key, value in vars(module).items():
                if isinstance(value, (dict, list, set, tuple)):
                    note.contents.append((f"{name}.{key}", value, _entries(value)))
        note.parameters = [
            (name, tensor, tensor.requires_grad, tensor.grad)
            for name, tensor in _named_tensors(model)
        ]
        state = model.state_dict()
        note.state = {
            key: value.detach().clone() if isinstance(value, Tensor) else value
            for key, value in state.items()
        }
        note.metadata = {key: dict(value) for key, value in state._metadata.items()}
        note.flags = [module.training for module in model.modules()]
        return note

    def check(self, model: nn.Module) -> None:
        """Assert that the model is exactly as it was."""
        assert model is self.model, "another object came back"
        now = ModelSnapshot.of(model)
        assert [name for name, _, _ in now.modules] == [name for name, _, _ in self.modules]
        for (name, module, kind), (_, module_now, kind_now) in zip(
            self.modules, now.modules, strict=True
        ):
            assert module_now is module, f"{name}: another module"
            assert kind_now is kind, f"{name}: {kind_now} instead of {kind}"
        for (name, _, values), (_, _, values_now) in zip(
            self.attributes, now.attributes, strict=True
        ):
            assert [key for key, _ in values_now] == [key for key, _ in values], name
            for (key, value), (_, value_now) in zip(values, values_now, strict=True):
                assert value_now is value, f"{name}.{key} is another object"
        for (name, _, entries), (_, _, entries_now) in zip(
            self.contents, now.contents, strict=True
        ):
            assert len(entries) == len(entries_now), f"{name} has other entries"
            for entry, entry_now in zip(entries, entries_now, strict=True):
                assert entry is entry_now, f"{name}: {entry_now!r} instead of {entry!r}"
        assert len(self.parameters) == len(now.parameters)
        for (name, tensor, trains, grad), (name_now, tensor_now, trains_now, grad_now) in zip(
            self.parameters, now.parameters, strict=True
        ):
            assert name == name_now
            assert tensor is tensor_now, f"{name}: another tensor"
            assert trains == trains_now, f"{name}: requires_grad changed"
            assert grad is grad_now, f"{name}: its gradient changed"
        assert list(now.state) == list(self.state)
        for key, value in self.state.items():
            assert_same_bits(value, now.state[key], key)
        assert now.metadata == self.metadata
        assert list(now.metadata) == list(self.metadata)
        assert now.flags == self.flags


def _entries(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [item for pair in value.items() for item in pair]
    if isinstance(value, set):
        return sorted(value, key=id)
    return list(value)


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def is_host_key(key: str) -> bool:
    """Whether a state-dict key belongs to the host, not to a private branch."""
    return ".passport." not in f".{key}"


def assert_same_bits(expected: Any, actual: Any, place: str) -> None:
    """Assert that two nests of tensors are the same to the last bit (NaN equals NaN)."""
    first, second = list(tensors_in(expected)), list(tensors_in(actual))
    assert len(first) == len(second), f"{place}: another number of tensors"
    for one, other in zip(first, second, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype, place
        if one.is_meta:
            assert other.is_meta, place
            continue
        same = torch.equal(one, other) or bool(
            ((one == other) | (one.isnan() & other.isnan())).all()
        )
        assert same, f"{place}: differs by {(one.double() - other.double()).abs().max():.3g}"


def _call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


@contextmanager
def _undisturbed(model: nn.Module, training: bool) -> Iterator[None]:
    """Seeded generators and a training flag; everything is put back."""
    with frozen_random_state(), frozen_model(model, values=True):
        random.seed(SEED)
        np.random.seed(SEED)
        torch.manual_seed(SEED)
        model.train(training)
        yield


def forward_outputs(model: nn.Module, inputs: Any, training: bool) -> tuple[Any, dict[str, Tensor]]:
    """Output, and the host's buffers after it, of one forward pass that leaves no trace."""
    with torch.no_grad(), _undisturbed(model, training):
        output = _call(model, inputs)
        buffers = {
            name: buffer.clone()
            for name, buffer in model.named_buffers(remove_duplicate=False)
            if is_host_key(name)
        }
    return output, buffers


def _differs(one: Any, other: Any) -> bool:
    pairs = zip(tensors_in(one), tensors_in(other), strict=True)
    return any(not torch.equal(first, second) for first, second in pairs)


def _finite(output: Any) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors_in(output))


def default_criterion(output: Any, targets: Any) -> Tensor:
    """Mean square of everything that comes out."""
    floats = [tensor.float() for tensor in tensors_in(output) if tensor.is_floating_point()]
    return torch.stack([tensor.square().mean() for tensor in floats]).sum()


def assert_joint_step(
    model: nn.Module, inputs: Any, criterion: Callable[[Any, Any], Tensor], private: bool
) -> None:
    """One joint backward reaches every bound weight and every private parameter."""
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        with _undisturbed(model, training=True):
            loss = pp.joint_loss(model, inputs, None, criterion)
            assert bool(loss.total.isfinite()), "the joint loss is not finite"
            assert (loss.private is not None) == private
            loss.total.backward()
            for name, layer in passport_layers(model).items():
                branch = layer.passport
                if not branch.bound:
                    continue
                for owner, attribute, part in branch.weights.owners:
                    weight = getattr(owner, attribute)
                    grad = _gradient(owner, attribute, weight)
                    if grad is None and not weight.requires_grad:
                        continue
                    assert grad is not None, f"{name}: no gradient in {part.weight}"
                    assert bool(grad.isfinite().all()), f"{name}: {part.weight}"
                    assert bool(grad.any()), f"{name}: zero gradient in {part.weight}"
                for key, parameter in branch.named_parameters():
                    assert parameter.grad is not None and bool(parameter.grad.any()), (name, key)
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        switch_of(model).trained = False


def _gradient(owner: nn.Module, attribute: str, weight: Tensor) -> Tensor | None:
    if isinstance(weight, nn.Parameter):
        return weight.grad
    # A computed weight; what it is made of holds the gradients.
    return next((t.grad for t in sources_of(owner, attribute) if t.grad is not None), None)


def assert_round_trip(
    model: nn.Module,
    passport: pp.Passport,
    inputs: Any,
    /,
    *,
    config: pp.PassportConfig | None = None,
    criterion: Callable[[Any, Any], Tensor] = default_criterion,
    joint: bool = True,
    private_differs: bool = True,
    **kwargs: Any,
) -> list[pp.PassportLayer]:
    """Passportize, use and restore a model, and compare everything before and after.

    Args:
        model: A plain model on the CPU.
        passport: Any passport.
        inputs: A tensor, a tuple of arguments or a dict of keyword arguments; at least two
            samples.
        config: Formulation.
        criterion: Loss of the joint step.
        joint: Whether to take a joint step.
        private_differs: Whether the private branch must give another output.
        **kwargs: For ``passportize``; ``example_inputs`` are ``inputs`` unless given here.

    Returns:
        The layers that were passportized (plain norms again).
    """
    kwargs.setdefault("example_inputs", inputs)
    before = ModelSnapshot.of(model)
    plain = {training: forward_outputs(model, inputs, training) for training in (False, True)}
    before.check(model)

    random_state = torch.get_rng_state()
    assert pp.passportize(model, passport, config=config, **kwargs) is model
    assert torch.equal(random_state, torch.get_rng_state()), "surgery consumed random numbers"
    layers = list(passport_layers(model).values())
    assert layers
    assert any(layer.passport.site.role is Role.BOUND for layer in layers)
    state = model.state_dict()
    assert [key for key in state if is_host_key(key)] == list(before.state)
    for key, value in before.state.items():
        assert_same_bits(value, state[key], key)
    for training, (output, buffers) in plain.items():
        mode = "train" if training else "eval"
        public, buffers_now = forward_outputs(model, inputs, training)
        assert_same_bits(output, public, f"public output ({mode})")
        assert_same_bits(buffers, buffers_now, f"host buffers ({mode})")
    has_private = switch_of(model).config.has_private_pass
    if has_private:
        for training, (output, _) in plain.items():
            with pp.branch(model, "private"):
                private, buffers_now = forward_outputs(model, inputs, training)
            assert _finite(private) or not _finite(output), "the private output is not finite"
            assert not private_differs or _differs(output, private), "private equals public"
            for key in _statistics_of(layers, model):
                place = f"{key}: public statistics after a private pass"
                assert_same_bits(before.state[key], buffers_now[key], place)
    if joint:
        assert_joint_step(model, inputs, criterion, has_private)

    assert pp.unpassportize(model) is model
    before.check(model)
    for training, (output, _) in plain.items():
        restored, _ = forward_outputs(model, inputs, training)
        assert_same_bits(output, restored, "restored output")
    before.check(model)
    return layers


def _statistics_of(layers: list[pp.PassportLayer], model: nn.Module) -> list[str]:
    """Names of the host statistics of two-branch layers."""
    swapped = {id(layer) for layer in layers}
    return [
        f"{name}.{key}" if name else key
        for name, module in model.named_modules(remove_duplicate=False)
        if id(module) in swapped
        for key in module._buffers
        if module._buffers[key] is not None and key not in module._non_persistent_buffers_set
    ]


def assert_failure_leaves_no_trace(
    model: nn.Module, passport: pp.Passport, monkeypatch: Any, **kwargs: Any
) -> None:
    """Let surgery fail at the first, a middle and the last site and at the hooks, and compare."""
    planned = pp.plan(model, **kwargs)
    count = len([site for site in planned.sites if site.role in (Role.BOUND, Role.STATISTICS)])
    assert count
    before = ModelSnapshot.of(model)
    put_in = surgery_branches.put_in_branch
    for failing in sorted({0, count // 2, count - 1}):
        done = 0

        def swap_or_fail(norm: nn.Module, branch: Any, failing: int = failing) -> None:
            nonlocal done
            if done == failing:
                raise KeyboardInterrupt
            done += 1
            put_in(norm, branch)

        with monkeypatch.context() as patch:
            patch.setattr(surgery_branches, "put_in_branch", swap_or_fail)
            _expect_interrupt(model, passport, kwargs)
        before.check(model)

    def put_in_half(self: RootHooks, root: nn.Module) -> None:
        root.register_forward_pre_hook(self.begin, with_kwargs=True)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RootHooks, "put_in", put_in_half)
        _expect_interrupt(model, passport, kwargs)
    before.check(model)


def _expect_interrupt(model: nn.Module, passport: pp.Passport, kwargs: dict[str, Any]) -> None:
    try:
        pp.passportize(model, passport, **kwargs)
    except KeyboardInterrupt:
        return
    raise AssertionError("surgery swallowed the error")


def wake(model: nn.Module) -> None:
    """Small numbers where a fresh model starts with zeros, or its output would always be zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and not bool(parameter.any()):
                parameter.normal_(std=0.02)
