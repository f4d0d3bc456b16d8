"""Vision models of Hugging Face's transformers, built small from a config; nothing is fetched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import transformers as hf
from torch import nn

__all__ = ["MODELS", "build", "image_size"]

TOKENS: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
DINO = {key: value for key, value in TOKENS.items() if key != "intermediate_size"}
WINDOWS: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 2],
    "window_size": 4,
}
FOUR_STAGES: dict[str, Any] = {"hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 2, 1]}
PYRAMID: dict[str, Any] = {
    "hidden_sizes": [8, 16, 32, 32],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 2, 2, 2],
}


class Small(NamedTuple):
    """A class, the class of its config, settings, and the image size to call it with."""

    model: Callable[[Any], nn.Module]
    config: Callable[..., Any]
    settings: dict[str, Any]
    size: int


MODELS = {
    "vit": Small(hf.ViTForImageClassification, hf.ViTConfig, TOKENS, 32),
    "deit": Small(hf.DeiTForImageClassification, hf.DeiTConfig, TOKENS, 32),
    "beit": Small(
        hf.BeitForImageClassification, hf.BeitConfig, {**TOKENS, "out_indices": [1, 2]}, 32
    ),
    "dinov2": Small(hf.Dinov2ForImageClassification, hf.Dinov2Config, DINO, 32),
    "dinov3": Small(hf.DINOv3ViTModel, hf.DINOv3ViTConfig, TOKENS, 32),
    "clip": Small(hf.CLIPVisionModel, hf.CLIPVisionConfig, TOKENS, 32),
    "siglip": Small(hf.SiglipVisionModel, hf.SiglipVisionConfig, TOKENS, 32),
    "swin": Small(hf.SwinForImageClassification, hf.SwinConfig, WINDOWS, 32),
    "swinv2": Small(hf.Swinv2ForImageClassification, hf.Swinv2Config, WINDOWS, 32),
    "convnext": Small(hf.ConvNextForImageClassification, hf.ConvNextConfig, FOUR_STAGES, 64),
    "convnextv2": Small(hf.ConvNextV2ForImageClassification, hf.ConvNextV2Config, FOUR_STAGES, 64),
    "segformer": Small(
        hf.SegformerForSemanticSegmentation,
        hf.SegformerConfig,
        {**PYRAMID, "decoder_hidden_size": 16},
        64,
    ),
    "pvtv2": Small(
        hf.PvtV2ForImageClassification, hf.PvtV2Config, {**PYRAMID, "image_size": 32}, 32
    ),
    "hiera": Small(
        hf.HieraForImageClassification,
        hf.HieraConfig,
        {
            "image_size": [64, 64],
            "embed_dim": 16,
            "depths": [1, 1, 2, 1],
            "num_heads": [1, 2, 4, 8],
        },
        64,
    ),
    "poolformer": Small(hf.PoolFormerForImageClassification, hf.PoolFormerConfig, FOUR_STAGES, 64),
    "focalnet": Small(
        hf.FocalNetForImageClassification,
        hf.FocalNetConfig,
        {
            "image_size": 32,
            "patch_size": 2,
            "embed_dim": 16,
            "depths": [1, 1],
            "focal_levels": [2, 2],
            "focal_windows": [3, 3],
        },
        32,
    ),
    "levit": Small(
        hf.LevitForImageClassification,
        hf.LevitConfig,
        {
            "image_size": 64,
            "hidden_sizes": [32, 48, 64],
            "num_attention_heads": [2, 3, 4],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
        },
        64,
    ),
    "resnet": Small(
        hf.ResNetForImageClassification,
        hf.ResNetConfig,
        {"embedding_size": 16, "hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 1, 1]},
        64,
    ),
    "bit": Small(
        hf.BitForImageClassification,
        hf.BitConfig,
        {
            "embedding_size": 16,
            "hidden_sizes": [32, 64, 64, 128],
            "depths": [1, 1, 1, 1],
            "num_groups": 8,
        },
        64,
    ),
    "regnet": Small(
        hf.RegNetForImageClassification,
        hf.RegNetConfig,
        {
            "embedding_size": 16,
            "hidden_sizes": [16, 32, 32, 64],
            "depths": [1, 1, 1, 1],
            "groups_width": 8,
        },
        64,
    ),
    "mobilenetv2": Small(
        hf.MobileNetV2ForImageClassification,
        hf.MobileNetV2Config,
        {"image_size": 32, "depth_multiplier": 0.35},
        32,
    ),
    "mobilevit": Small(
        hf.MobileViTForImageClassification,
        hf.MobileViTConfig,
        {
            "image_size": 64,
            "hidden_sizes": [16, 24, 32],
            "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32],
        },
        64,
    ),
}


def build(name: str) -> nn.Module:
    """A fresh model with random weights."""
    entry = MODELS[name]
    return entry.model(entry.config(**entry.settings))


def image_size(name: str) -> tuple[int, int, int]:
    """Channels, height and width of the pictures to call it with."""
    return (3, MODELS[name].size, MODELS[name].size)
