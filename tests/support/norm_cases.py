"""Every norm that has an adapter, how it is built, and an input for it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from passportize.config import PassportConfig
from passportize.layers.layer import PassportLayer
from passportize.layers.private_branch import Branch
from passportize.layers.registry import registered_norms
from passportize.layers.switch import Switch
from passportize.signature.site import Role, Site
from passportize.surgery.branches import put_in_branch

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
    for library in ("timm.layers", "timm.models", "torchvision.models"):
        importlib.import_module(library)  # or their norms have no adapter yet
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
    site = Site(name="norm", layer_type="", role=Role.STATISTICS)
    config = PassportConfig.keyed()
    put_in_branch(norm, Branch(site, config, Switch(config), norm))
    assert isinstance(norm, PassportLayer)
    return norm
