"""The models of ``timm_families.py``: small members of many families, cut by timm's arguments."""

from __future__ import annotations

from typing import Any

AT_64: dict[str, Any] = {"img_size": 64}
WINDOWS: dict[str, Any] = {**AT_64, "embed_dim": 48, "depths": (1, 1), "num_heads": (2, 4)}
STAGES: dict[str, Any] = {"dims": (24, 48, 96, 192), "depths": (1, 1, 2, 1)}
HIERARCHY: dict[str, Any] = {"stages": (1, 1, 1, 1), "embed_dim": 48}
ATTENTION: dict[str, Any] = {
    "depths": (1, 1, 1, 1),
    "embed_dims": (32, 64, 96, 128),
    "num_heads": (2, 4, 6, 8),
}

MODELS: dict[str, dict[str, Any]] = {
    "resnet10t": {},
    "resnetv2_50d_evos": {"layers": (1, 1, 1, 1)},
    "resnetv2_50d_frn": {"layers": (1, 1, 1, 1)},
    "resnet50_gn": {"layers": (1, 1, 1, 1)},
    "regnety_002": {},
    "regnetz_b16_evos": {},
    "efficientnet_b0": {},
    "mobilenetv3_small_100": {},
    "test_vit": {},
    "convit_tiny": {**AT_64, "depth": 3},
    "test_efficientnet_gn": {},
    "test_mambaout": {},
    "swinv2_tiny_window8_256": WINDOWS,
    "swin_tiny_patch4_window7_224": WINDOWS,
    "test_byobnet": {},
    "test_vit4": {},
    "cait_xxs24_224": {**AT_64, "depth": 3},
    "test_efficientnet_ln": {},
    "vit_relpos_small_patch16_224": {**AT_64, "depth": 2},
    "convnext_atto_rms": STAGES,
    "convnextv2_atto": STAGES,
    "hiera_tiny_224": {**AT_64, **HIERARCHY},
    "levit_128s": AT_64,
    "xcit_nano_12_p16_224": {"depth": 4},
    "deit3_small_patch16_224": {**AT_64, "depth": 2},
    "starnet_s050": {},
    "mobilenetv3_small_050": {},
    "pit_ti_224": AT_64,
    "test_coatnet": AT_64,
    "tnt_s_legacy_patch16_224": {**AT_64, "depth": 2},
    "davit_tiny": ATTENTION,
    "edgenext_xx_small": {},
    "efficientvit_b0": {},
    "mobilevit_xxs": {},
    "pvt_v2_b0": {},
    "gmlp_ti16_224": AT_64,
    "densenet121": {"block_config": (4, 4, 4)},
    "dla46_c": {},
    "twins_svt_small": {"depths": (1, 1, 1, 1)},
    "ghostnet_050": {},
    "repvgg_a0": {},
    "mixer_s32_224": AT_64,
    "resmlp_12_224": AT_64,
    "coat_lite_tiny": AT_64,
    "fastvit_t8": {},
    "gcvit_xxtiny": AT_64,
    "tiny_vit_5m_224": {},
    "poolformer_s12": {},
    "focalnet_tiny_srf": {},
    "nest_tiny": AT_64,
    "maxvit_rmlp_pico_rw_256": AT_64,
    "resnetv2_50x1_bit": {},
    "efficientnet_cc_b0_4e": {},
    "hrnet_w18_small": {},
    "caformer_s18": {},
}
