"""Names that the command and the plugin of timm's own tests share."""

from __future__ import annotations

NEEDS_HUB = ("test_model_inference", "test_model_load_pretrained", "test_model_features_pretrained")
FRESH, RESTORED = "fresh", "restored"
"""The two kinds of models that every test is run with."""
