"""Every adapter: given the host's own factors and statistics, the private norm is the host's."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import timm.layers
import timm.models
import torch
import torchvision
from torch import Tensor, nn

import passportize as pp
from passportize.adapters.layer_norm import PassportLayerNorm
from passportize.config import PassportConfig
from passportize.errors import SurgeryError
from passportize.layers.layer import PassportLayer
from passportize.layers.private_branch import Branch
from passportize.layers.registry import adapter_for, registered_norms
from passportize.layers.switch import Pass, Switch
from passportize.signature.site import Role, Site
from passportize.surgery.attach import swap, swap_back
from tests.support.round_trip import ModelSnapshot, assert_round_trip, assert_same_bits, is_host_key

CHANNELS = 32
IMAGE = (4, CHANNELS, 5, 6)
TOKENS = (4, 7, CHANNELS)


@dataclass(frozen=True)
class Case:
    """A norm, how it is built, and an input shape for it."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return self.name


def _torch_cases() -> list[Case]:
    cases = []
    shapes = {1: (4, CHANNELS, 6), 2: IMAGE, 3: (4, CHANNELS, 2, 3, 4)}
    for dimension, shape in shapes.items():
        batch = getattr(nn, f"BatchNorm{dimension}d")
        instance = getattr(nn, f"InstanceNorm{dimension}d")
        for affine in (True, False):
            for tracked in (True, False):
                for momentum in (0.1, None):
                    label = f"affine={affine} tracked={tracked} momentum={momentum}"
                    if momentum is None and not tracked:
                        continue
                    cases.append(
                        Case(
                            f"torch {batch.__name__} {label}",
                            lambda b=batch, a=affine, t=tracked, m=momentum: b(
                                CHANNELS, affine=a, track_running_stats=t, momentum=m
                            ),
                            shape,
                        )
                    )
                cases.append(
                    Case(
                        f"torch {instance.__name__} affine={affine} tracked={tracked}",
                        lambda i=instance, a=affine, t=tracked: i(
                            CHANNELS, affine=a, track_running_stats=t
                        ),
                        shape,
                    )
                )
    cases += [
        Case("torch BatchNorm1d on [B, C]", lambda: nn.BatchNorm1d(CHANNELS), (6, CHANNELS)),
        Case("torch InstanceNorm1d, no batch", lambda: nn.InstanceNorm1d(4), (4, 9)),
        Case("torch SyncBatchNorm", lambda: nn.SyncBatchNorm(CHANNELS), IMAGE),
        Case("torch GroupNorm", lambda: nn.GroupNorm(4, CHANNELS), IMAGE),
        Case("torch GroupNorm, plain", lambda: nn.GroupNorm(4, CHANNELS, affine=False), IMAGE),
        Case("torch GroupNorm on [B, C]", lambda: nn.GroupNorm(4, CHANNELS), (4, CHANNELS)),
        Case("torch GroupNorm on [B, C, L]", lambda: nn.GroupNorm(4, CHANNELS), (4, CHANNELS, 6)),
    ]
    for dims in ((CHANNELS,), (6, CHANNELS), (CHANNELS, 5, 6)):
        shape = (4, 7, *dims) if len(dims) == 1 else (4, *dims)
        cases += [
            Case(f"torch LayerNorm {dims}", lambda d=dims: nn.LayerNorm(d), shape),
            Case(
                f"torch LayerNorm {dims}, plain",
                lambda d=dims: nn.LayerNorm(d, elementwise_affine=False),
                shape,
            ),
            Case(
                f"torch LayerNorm {dims}, no bias",
                lambda d=dims: nn.LayerNorm(d, bias=False),
                shape,
            ),
            Case(f"torch RMSNorm {dims}", lambda d=dims: nn.RMSNorm(d), shape),
            Case(
                f"torch RMSNorm {dims}, plain",
                lambda d=dims: nn.RMSNorm(d, elementwise_affine=False),
                shape,
            ),
        ]
    return cases


# Arguments besides the number of channels, and whether the input is laid out as an image.
LIBRARY_NORMS: dict[str, list[tuple[dict[str, object], tuple[int, ...]]]] = {
    "timm.layers.norm.GroupNorm": [({}, IMAGE), ({"num_groups": 4, "affine": False}, IMAGE)],
    "timm.layers.norm.GroupNorm1": [({}, IMAGE)],
    "timm.layers.norm.LayerNorm": [({}, TOKENS), ({"affine": False}, TOKENS), ({}, (4, CHANNELS))],
    "timm.layers.norm.LayerNormFp32": [({}, TOKENS), ({"affine": False}, TOKENS)],
    "timm.layers.norm.LayerNorm2d": [({}, IMAGE), ({"affine": False}, IMAGE)],
    "timm.layers.norm.LayerNorm2dFp32": [({}, IMAGE)],
    "timm.layers.norm.LayerNorm3d": [({}, (4, CHANNELS, 2, 3, 4))],
    "timm.layers.norm.LayerNorm3dFp32": [({}, (4, CHANNELS, 2, 3, 4))],
    "timm.layers.norm.LayerNormExp2d": [({}, IMAGE)],
    "timm.layers.norm.RmsNorm": [({}, TOKENS), ({"affine": False}, TOKENS)],
    "timm.layers.norm.RmsNormFp32": [({}, TOKENS), ({"affine": False}, TOKENS)],
    "timm.layers.norm.RmsNorm2d": [({}, IMAGE), ({"affine": False}, IMAGE)],
    "timm.layers.norm.RmsNorm2dFp32": [({}, IMAGE)],
    "timm.layers.norm.SimpleNorm": [({}, TOKENS), ({"affine": False}, TOKENS)],
    "timm.layers.norm.SimpleNormFp32": [({}, TOKENS)],
    "timm.layers.norm.SimpleNorm2d": [({}, IMAGE)],
    "timm.layers.norm.SimpleNorm2dFp32": [({}, IMAGE)],
    "timm.layers.norm_act.BatchNormAct2d": [
        ({}, IMAGE),
        ({"affine": False, "momentum": None}, IMAGE),
        ({"track_running_stats": False, "apply_act": False}, IMAGE),
        ({"act_layer": nn.LeakyReLU, "drop_layer": nn.Dropout2d}, IMAGE),
    ],
    "timm.layers.norm_act.SyncBatchNormAct": [({}, IMAGE)],
    "timm.layers.norm_act.FrozenBatchNormAct2d": [({}, IMAGE), ({"act_layer": nn.SiLU}, IMAGE)],
    "timm.layers.norm_act.GroupNormAct": [({}, IMAGE), ({"drop_layer": nn.Dropout2d}, IMAGE)],
    "timm.layers.norm_act.GroupNorm1Act": [({}, IMAGE)],
    "timm.layers.norm_act.LayerNormAct": [({}, TOKENS)],
    "timm.layers.norm_act.LayerNormActFp32": [({}, TOKENS)],
    "timm.layers.norm_act.LayerNormAct2d": [({}, IMAGE)],
    "timm.layers.norm_act.LayerNormAct2dFp32": [({}, IMAGE)],
    "timm.layers.norm_act.RmsNormAct": [({}, TOKENS)],
    "timm.layers.norm_act.RmsNormActFp32": [({}, TOKENS)],
    "timm.layers.norm_act.RmsNormAct2d": [({}, IMAGE)],
    "timm.layers.norm_act.RmsNormAct2dFp32": [({}, IMAGE)],
    **{
        f"timm.layers.evo_norm.EvoNorm2d{kind}": [({}, IMAGE), ({"apply_act": False}, IMAGE)]
        for kind in ("B0", "B1", "B2", "S0", "S0a", "S1", "S1a", "S2", "S2a")
    },
    "timm.layers.filter_response_norm.FilterResponseNormTlu2d": [
        ({}, IMAGE),
        ({"apply_act": False}, IMAGE),
    ],
    "timm.layers.filter_response_norm.FilterResponseNormAct2d": [({"inplace": True}, IMAGE)],
    "timm.layers.grn.GlobalResponseNorm": [
        ({}, (4, 5, 6, CHANNELS)),
        ({"channels_last": False}, IMAGE),
    ],
    "timm.layers.inplace_abn.InplaceAbn": [({}, IMAGE)],
    "timm.models.metaformer.GroupNorm1NoBias": [({}, IMAGE)],
    "timm.models.metaformer.LayerNorm2dNoBias": [({}, IMAGE)],
    "timm.models.metaformer.LayerNormNoBias": [({}, TOKENS)],
    "timm.models.mlp_mixer.Affine": [({}, TOKENS)],
    "torchvision.ops.misc.FrozenBatchNorm2d": [({}, IMAGE)],
    "torchvision.models.convnext.LayerNorm2d": [({}, IMAGE)],
}


def _library_cases() -> list[Case]:
    cases = []
    classes = {f"{norm.__module__}.{norm.__qualname__}": norm for norm in registered_norms()}
    for name, variants in LIBRARY_NORMS.items():
        norm = classes.get(name)
        if norm is None:  # not in this release
            continue
        for arguments, shape in variants:
            label = " ".join(f"{key}={value}" for key, value in arguments.items())
            cases.append(
                Case(
                    f"{name} {label} {len(shape)}d",
                    lambda n=norm, a=arguments: n(CHANNELS, **a),
                    shape,
                )
            )
    return cases


CASES = _torch_cases() + _library_cases()


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


def randomised(norm: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Factors and statistics that no two channels share, of both signs."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in [*norm.named_parameters(), *norm.named_buffers()]:
            if tensor.is_floating_point():
                values = torch.randn(tensor.shape, generator=generator)
                tensor.copy_(values.abs() + 0.5 if name == "running_var" else values)
    return norm.to(dtype)


def example(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return (torch.randn(shape, generator=generator) * 2 + 0.3).to(dtype)


def passportized(norm: nn.Module) -> PassportLayer:
    """A two-branch layer without an anchor: the private factors are the public ones."""
    site = Site(name="norm", norm_type="", role=Role.STATISTICS)
    config = PassportConfig.keyed()
    swap(norm, Branch(site, config, Switch(config), norm))
    assert isinstance(norm, PassportLayer)
    return norm


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
    swap_back(layer)
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


def test_host_called_by_keyword() -> None:
    norm = nn.BatchNorm2d(CHANNELS)
    x = example(IMAGE)
    layer = passportized(norm)
    assert_same_bits(layer(x), layer(input=x), "public")
    layer.passport.switch.mode = Pass.PRIVATE
    layer.eval()
    assert_same_bits(layer(x), layer(input=x), "private")


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize(
    "name", ["LayerNorm", "GroupNorm1", "RmsNorm", "LayerNorm2d", "SimpleNorm"]
)
def test_fast_norm_under_autocast(name: str, fast: bool) -> None:
    norm_class = getattr(timm.layers, name, None)
    if norm_class is None:
        pytest.skip("not in this release of timm")
    shape = IMAGE if name in ("GroupNorm1", "LayerNorm2d") else TOKENS
    host = randomised(norm_class(CHANNELS))
    host._fast_norm = fast
    layer = passportized(copy.deepcopy(host))
    x = example(shape)
    with torch.autocast("cpu", torch.bfloat16):
        expected = host(x)
        scale, shift, _ = layer.private_factors(x)
        actual = layer.private_norm(x, scale, shift)
    assert_same_bits(expected, actual, name)
    assert expected.dtype == actual.dtype


@pytest.mark.parametrize("name", ["LayerNorm", "BatchNormAct2d"])
def test_private_norm_compiles_without_graph_breaks(name: str) -> None:
    norm_class = getattr(timm.layers, name)
    host = randomised(norm_class(CHANNELS)).eval()
    layer = passportized(host)
    layer.passport.switch.mode = Pass.PRIVATE
    x = example(TOKENS if name == "LayerNorm" else IMAGE)
    explained = torch.compile(layer, backend="eager", fullgraph=True)
    assert_same_bits(layer(x), explained(x), name)


def test_frozen_norms_are_bound_on_demand_only() -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 16, 3, bias=False),
            torchvision.ops.FrozenBatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, bias=False),
            nn.BatchNorm2d(16),
            nn.Flatten(),
        )
        return model

    passport = pp.Passport.generate(owner="frozen", secret=bytes(range(32)))
    x = torch.randn(4, 3, 9, 9)
    planned = pp.plan(build(), example_inputs=x)
    assert [site.role for site in planned.sites] == [Role.SKIPPED, Role.BOUND]
    assert "include_frozen=True" in planned.sites[0].reason
    assert len(assert_round_trip(build(), passport, x)) == 1
    assert len(assert_round_trip(build(), passport, x, include_frozen=True)) == 2


def test_split_batch_norms_are_left_alone_and_named() -> None:
    model = timm.layers.convert_splitbn_model(timm.create_model("test_resnet"), num_splits=2)
    planned = pp.plan(model)
    assert {site.role for site in planned.sites} == {Role.SKIPPED}
    assert all(site.norm_type.endswith("SplitBatchNorm2d") for site in planned.sites)
    assert any("samples of both branches" in note for note in planned.notes)


class UnknownNorm(nn.LayerNorm):
    """A subclass that nobody registered: never swapped as its parent."""


class CustomNorm(nn.Module):
    """Somebody's norm, with its factors under other names and a second output scale inside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(channels))
        self.b = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        return torch.nn.functional.layer_norm(x, (x.shape[-1],)) * self.g * gain + self.b


class PassportCustomNorm(PassportLayer, CustomNorm):
    """An adapter in two lines."""

    scale_name = "g"
    shift_name = "b"


def test_a_subclass_is_never_swapped_as_its_parent() -> None:
    assert adapter_for(UnknownNorm(8)) is None
    layer = passportized(UnknownNorm(8))
    assert type(layer) is not PassportLayerNorm
    assert type(layer).host_class is UnknownNorm
    with pytest.raises(SurgeryError, match="no adapter"):
        passportized(UnknownNorm(8, elementwise_affine=False))


def test_registering_an_own_adapter() -> None:
    pp.register_adapter(CustomNorm, PassportCustomNorm)
    model = nn.Sequential(nn.Linear(9, 16), CustomNorm(16), nn.ReLU(), nn.Linear(16, 4))
    passport = pp.Passport.generate(owner="custom", secret=bytes(range(32)))
    assert len(assert_round_trip(model, passport, torch.randn(5, 9))) == 1


class DoubledLayerNorm(nn.LayerNorm):
    """A norm that calls its parent's forward."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class PassportDoubledLayerNorm(PassportLayer, DoubledLayerNorm):
    """An empty adapter."""


def test_hosts_that_call_their_parents_forward() -> None:
    pp.register_adapter(DoubledLayerNorm, PassportDoubledLayerNorm)
    host = randomised(DoubledLayerNorm(CHANNELS))
    x = example(TOKENS)
    expected = host(x)
    layer = passportized(host)
    assert_same_bits(expected, layer.private_norm(x, host.weight, host.bias), "doubled")
