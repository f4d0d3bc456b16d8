"""One small timm model for every norm class and every peculiarity that tracing meets."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

import passportize as pp
from passportize.layers.registry import registered_norms
from tests.support.round_trip import assert_round_trip

PASSPORT = pp.Passport.generate(owner="timm models", date="2026-11-28", secret=bytes(range(32)))

AT_64: dict[str, Any] = {"img_size": 64}
SHORT: dict[str, Any] = {"depths": (1, 1, 1, 1)}

# Name, arguments, input size, what is special about it.
MODELS: list[tuple[str, dict[str, Any], int, str]] = [
    # norm classes
    ("test_resnet", {}, 64, "torch BatchNorm2d"),
    ("test_byobnet", {}, 64, "BatchNormAct2d"),
    ("test_efficientnet", {}, 64, "BatchNormAct2d, depthwise convs, squeeze-excite"),
    ("test_efficientnet_gn", {}, 64, "GroupNormAct"),
    ("test_efficientnet_ln", {}, 64, "LayerNormAct2d"),
    ("test_efficientnet_evos", {}, 64, "EvoNorm2dS0"),
    ("test_convnext", {}, 64, "timm LayerNorm, channels last"),
    ("convnext_zepto_rms", {}, 64, "SimpleNorm2d"),
    ("convnext_atto_rms", {}, 64, "RmsNorm2d"),
    ("convnextv2_atto", {}, 64, "GlobalResponseNorm"),
    ("edgenext_xx_small", {}, 64, "LayerNorm2d, split channels, XCA"),
    ("test_vit4", {}, 64, "RmsNorm"),
    ("regnetz_b16_evos", {}, 64, "EvoNorm2dS0a"),
    ("resmlp_12_224", AT_64, 64, "Affine"),
    ("resnetv2_50d_frn", {"layers": (1, 1, 1, 1)}, 64, "FilterResponseNormTlu2d"),
    ("resnet50_gn", {"layers": (1, 1, 1, 1)}, 64, "timm GroupNorm"),
    ("poolformer_s12", {}, 64, "GroupNorm1"),
    ("caformer_s18", {}, 64, "metaformer's norms without bias"),
    ("deepseek_vit_412m", {"depth": 1}, 56, "RmsNormFp32"),
    ("shvit_s1", {}, 64, "GroupNorm1 on a split, BatchNorm1d head"),
    ("levit_128s", AT_64, 64, "BatchNorm1d on flattened tokens, norm before the batch axis"),
    # tracing
    ("test_vit", AT_64, 64, "class token, size checks"),
    ("test_vit_relpos", AT_64, 64, "relative position, q and k norms"),
    ("test_mambaout", {}, 64, "gated convs"),
    ("test_coatnet", AT_64, 64, "conv and attention stages"),
    ("mobilevit_xxs", {}, 64, "norms inside notrace blocks, unfolded batch"),
    ("mobilevitv2_050", {}, 64, "norms inside notrace blocks"),
    ("efficientvit_b0", {}, 64, "lite attention in a notrace block"),
    ("cpubone_nano", {}, 64, "norms inside opaque attention"),
    ("tiny_vit_5m_224", {}, 64, "windowed batch"),
    ("hiera_tiny_224", {"stages": (1, 1, 1, 1), **AT_64}, 64, "masked units"),
    ("swin_tiny_patch4_window7_224", {**SHORT, **AT_64}, 64, "shifted windows"),
    ("swinv2_tiny_window8_256", {**SHORT, **AT_64}, 64, "post-norm, cosine attention"),
    ("crossvit_9_240", {}, 64, "two branches, resampling"),
    ("convit_tiny", AT_64, 64, "gated positional attention"),
    ("xcit_nano_12_p16_224", {}, 64, "cross-covariance attention"),
    ("densenet121", {"block_config": (2, 2), "growth_rate": 8}, 64, "concat of many"),
    ("tnt_s_legacy_patch16_224", {"depth": 2, **AT_64}, 64, "pixels inside tokens"),
    ("lambda_resnet26t", {}, 64, "lambda layers, norms hard to bind"),
    ("efficientnet_cc_b0_4e", {}, 64, "weights mixed for each sample"),
    ("tf_efficientnet_lite0", {}, 64, "padding by size"),
    ("twins_svt_small", SHORT, 64, "position encoding by convolution"),
    ("naflexvit_base_patch16_gap", {"depth": 2}, 64, "dictionary inputs"),
]


def build(name: str, arguments: dict[str, Any]) -> nn.Module:
    """A fresh model in which nothing is zero, so that every path counts."""
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=8, **arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    return model


@pytest.mark.parametrize(
    ("name", "arguments", "size"), [entry[:3] for entry in MODELS], ids=[row[0] for row in MODELS]
)
def test_round_trip(name: str, arguments: dict[str, Any], size: int) -> None:
    model = build(name, arguments)
    channels = model.default_cfg["input_size"][0]
    x = torch.randn(2, channels, size, size)
    assert_round_trip(model, PASSPORT, x)


def test_every_norm_class_of_the_table_above_is_met() -> None:
    unknown = [name for name, *_ in MODELS if not timm.is_model(name)]
    if unknown:
        pytest.skip(f"timm {timm.__version__} has no {', '.join(unknown)}")
    met: set[str] = set()
    for name, arguments, _, _ in MODELS:
        with torch.device("meta"):
            model = timm.create_model(name, **arguments)
        met |= {type(module).__name__ for module in model.modules()}
    wanted = """
        BatchNorm1d BatchNorm2d BatchNormAct2d GroupNorm GroupNorm1 GroupNormAct LayerNorm
        LayerNorm2d LayerNormAct2d EvoNorm2dS0 EvoNorm2dS0a FilterResponseNormTlu2d
        GlobalResponseNorm Affine RmsNorm RmsNorm2d RmsNormFp32 SimpleNorm2d
        LayerNorm2dNoBias LayerNormNoBias
    """
    missing = {name for name in wanted.split() if name not in met}
    available = {kind.__name__ for kind in registered_norms()}
    assert not missing & available
