"""Vision models of transformers: their outputs are dictionaries with fields."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import passportize as pp
from passportize.signature.site import Role
from tests.support.round_trip import assert_round_trip, wake

pytest.importorskip("transformers")

from tests.support.transformers_models import MODELS, build, image_size

PASSPORT = pp.Passport.generate(owner="Transformers", date="2026-11-28", secret=bytes(range(32)))
# One for every norm class, every way to record outputs, and everything that is read specially.
TESTED = ["vit", "swin", "convnextv2", "dinov2", "segformer", "bit", "levit"]


def images(name: str, rows: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"pixel_values": torch.randn(rows, *image_size(name), generator=generator)}


@pytest.mark.parametrize("name", TESTED)
def test_round_trip(name: str) -> None:
    torch.manual_seed(0)
    model = build(name)
    wake(model)
    planned = pp.plan(model, example_inputs=images(name))
    assert len(planned.role(Role.BOUND)) == len(planned.sites)
    assert not planned.notes  # both ways to read the model agree
    assert_round_trip(model, PASSPORT, images(name))


# Batch norms ask for eight private samples at least.
@pytest.mark.parametrize(("name", "private_rows"), [("vit", 4), ("segformer", 8)])
def test_outputs_of_a_joint_pass_are_cut_field_by_field(name: str, private_rows: int) -> None:
    torch.manual_seed(0)
    model = pp.passportize(build(name), PASSPORT, example_inputs=images(name)).train()
    seen: list[Any] = []

    def criterion(output: Any, targets: Tensor) -> Tensor:
        seen.append(output)
        scores = output.logits
        labels = (
            targets if scores.dim() == 2 else targets[:, None, None].expand(-1, *scores.shape[2:])
        )
        return F.cross_entropy(scores, labels)

    x = {**images(name, 16), "output_hidden_states": True}
    loss = pp.joint_loss(model, x, torch.arange(16) % 2, criterion)
    loss.total.backward()
    public, private = seen
    assert type(public) is type(private) and hasattr(public, "to_tuple")
    assert len(public.logits) == 16 and len(private.logits) == private_rows
    assert len(public.hidden_states) == len(private.hidden_states) > 2
    assert {len(state) for state in public.hidden_states} == {16}
    assert {len(state) for state in private.hidden_states} == {private_rows}
    assert public["logits"] is public.logits is public.to_tuple()[0]


def test_standardised_kernels_of_bit_are_centred() -> None:
    planned = pp.plan(build("bit"), example_inputs=images("bit"))
    assert all(part.centred for s in planned.sites if s.anchor for part in s.anchor.parts)


def test_the_models_of_the_coverage_table_are_there() -> None:
    assert set(TESTED) < set(MODELS)
