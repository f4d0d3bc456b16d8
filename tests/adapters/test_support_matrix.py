"""Every norm class of torch, timm and torchvision is adapted, or stands here with a reason.

A new release that brings a norm makes this fail, so that somebody decides.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import warnings
from types import ModuleType

import pytest
import timm.layers
import timm.models
import torch
import torchvision
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from passportize.adapters import NOT_ADAPTED
from passportize.layers.layer import PassportLayer
from passportize.layers.registry import registered_norms
from passportize.utils.names import describe_type
from tests.support.norm_cases import CASES

NORM_NAME = re.compile(r"norm|affine|(^|[a-z])bn|abn|rms|lrn|grn", re.IGNORECASE)

# Classes whose name speaks of a norm. "holds": a block with norms inside, which are found by
# themselves.
NOT_A_NORM = {
    "torch.nn.modules.activation.Softmax2d": "no statistics over a batch",
    "torch.nn.modules.batchnorm._BatchNorm": "abstract",
    "torch.nn.modules.batchnorm._NormBase": "abstract",
    "torch.nn.modules.instancenorm._InstanceNorm": "abstract",
    "timm.layers.classifier.ClNormMlpClassifierHead": "holds",
    "timm.layers.classifier.NormMlpClassifierHead": "holds",
    "timm.layers.conv_bn_act.ConvNormAct": "holds",
    "timm.layers.mlp.GlobalResponseNormMlp": "holds",
    "timm.layers.separable_conv.SeparableConvNormAct": "holds",
    "timm.models._efficientnet_blocks.ConvBnAct": "holds",
    "timm.models.byobnet.ByobNet": "a model",
    "timm.models.dpn.BnAct": "holds",
    "timm.models.dpn.BnActConv2d": "holds",
    "timm.models.dpn.CatBnAct": "holds",
    "timm.models.efficientformer.ConvMlpWithNorm": "holds",
    "timm.models.efficientformer_v2.ConvMlpWithNorm": "holds",
    "timm.models.efficientformer_v2.ConvNorm": "holds",
    "timm.models.efficientvit_mit.ConvNormAct": "holds",
    "timm.models.efficientvit_msra.ConvNorm": "holds",
    "timm.models.efficientvit_msra.NormLinear": "holds",
    "timm.models.eva.EvaBlockPostNorm": "holds",
    "timm.models.hgnet.ConvBNAct": "holds",
    "timm.models.hgnet.LearnableAffineBlock": "one number for all channels, no statistics",
    "timm.models.hgnet.LightConvBNAct": "holds",
    "timm.models.iformer.ConvNorm": "holds",
    "timm.models.iformer.NormLinear": "holds",
    "timm.models.levit.ConvNorm": "holds",
    "timm.models.levit.LinearNorm": "holds",
    "timm.models.levit.NormLinear": "holds",
    "timm.models.mambaout.DownsampleNormFirst": "holds",
    "timm.models.nasnet.ActConvBn": "holds",
    "timm.models.nasnet.NormalCell": "holds",
    "timm.models.nextvit.ConvNormAct": "holds",
    "timm.models.nfnet.NormFreeBlock": "has no norm",
    "timm.models.nfnet.NormFreeNet": "has no norm",
    "timm.models.pnasnet.ActConvBn": "holds",
    "timm.models.repvit.ConvNorm": "holds",
    "timm.models.repvit.NormLinear": "holds",
    "timm.models.shvit.Conv2dNorm": "holds",
    "timm.models.shvit.NormLinear": "holds",
    "timm.models.starnet.ConvBN": "holds",
    "timm.models.tiny_vit.ConvNorm": "holds",
    "timm.models.tiny_vit.NormMlp": "holds",
    "torchvision.ops.misc.Conv2dNormActivation": "holds",
    "torchvision.ops.misc.Conv3dNormActivation": "holds",
    "torchvision.ops.misc.ConvNormActivation": "holds",
}


def _classes(package: ModuleType) -> dict[str, type[nn.Module]]:
    """Modules defined in a package or below it whose name speaks of a norm."""
    found: dict[str, type[nn.Module]] = {}
    names = [package.__name__]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # packages that only point to their new place
        walked = list(pkgutil.walk_packages(package.__path__, package.__name__ + "."))
    for _, name, _ in walked:
        if not any(part in name for part in ("test", "onnx", "intrinsic", "quantiz")):
            names.append(name)
    for name in names:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # files that only point to their new place
                module = importlib.import_module(name)
        except Exception:  # an optional dependency of that file is missing
            continue
        for kind in vars(module).values():
            if (
                inspect.isclass(kind)
                and issubclass(kind, nn.Module)
                and kind.__module__ == name
                and NORM_NAME.search(kind.__name__)
            ):
                found[f"{kind.__module__}.{kind.__qualname__}"] = kind
    return found


@pytest.mark.parametrize(
    "package",
    [torch.nn.modules, timm.layers, timm.models, torchvision.ops, torchvision.models],
    ids=lambda package: package.__name__,
)
def test_every_norm_is_adapted_or_has_a_reason(package: ModuleType) -> None:
    adapted = registered_norms()
    unknown = []
    for name, kind in _classes(package).items():
        if kind in adapted or kind in NOT_ADAPTED or name in NOT_A_NORM:
            continue
        if issubclass(kind, LazyModuleMixin):  # becomes one of the others with its first batch
            continue
        unknown.append(name)
    assert not unknown, f"decide about {unknown}: an adapter, NOT_ADAPTED or NOT_A_NORM"


def test_table_of_timm_norms_covers_timms_own() -> None:
    """What timm itself counts as norm layers."""
    create_norm = importlib.import_module("timm.layers.create_norm")
    create_norm_act = importlib.import_module("timm.layers.create_norm_act")
    kinds = set(create_norm._NORM_MAP.values()) | set(create_norm_act._NORM_ACT_MAP.values())
    adapted = registered_norms()
    missing = {describe_type(kind) for kind in kinds if inspect.isclass(kind)} - {
        describe_type(kind) for kind in adapted
    }
    assert not missing


def test_every_adapter_has_a_case_in_the_adapter_tests() -> None:
    tested = {type(case.build()) for case in CASES}
    untested = {
        describe_type(kind)
        for kind in registered_norms()
        if kind.__module__.split(".")[0] in ("torch", "timm", "torchvision")
    } - {describe_type(kind) for kind in tested}
    assert not untested


def test_reasons_are_given_and_adapters_derive_from_their_host() -> None:
    registered = registered_norms()
    for kind, reason in NOT_ADAPTED.items():
        assert kind not in registered
        assert len(reason) > 20, describe_type(kind)
    for norm, adapter in registered_norms().items():
        assert issubclass(adapter, PassportLayer) and issubclass(adapter, norm)
        assert adapter.host_class is norm
        assert getattr(sys.modules[adapter.__module__], adapter.__name__) is adapter
        assert adapter.__doc__


def test_the_adapters_import_no_framework_that_is_not_loaded() -> None:
    code = (
        "import sys, torch, passportize\n"
        "from passportize.layers.registry import adapter_for, registered_norms\n"
        "assert adapter_for(torch.nn.BatchNorm2d(3)) is not None\n"
        "assert not {'timm', 'torchvision', 'torch_geometric'} & set(sys.modules)\n"
        "before = len(registered_norms())\n"
        "import timm\n"
        "assert adapter_for(timm.layers.LayerNorm2d(4)) is not None\n"
        "assert len(registered_norms()) > before + 30\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
