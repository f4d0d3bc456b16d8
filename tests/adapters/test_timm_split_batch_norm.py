"""Split batch norms of timm."""

from __future__ import annotations

import timm.layers
import timm.models

import passportize as pp
from passportize.signature.site import Role


def test_split_batch_norms_are_left_alone_and_named() -> None:
    model = timm.layers.convert_splitbn_model(timm.create_model("test_resnet"), num_splits=2)
    planned = pp.plan(model)
    assert {site.role for site in planned.sites} == {Role.SKIPPED}
    assert all(site.layer_type.endswith("SplitBatchNorm2d") for site in planned.sites)
    assert any("samples of both branches" in note for note in planned.notes)
