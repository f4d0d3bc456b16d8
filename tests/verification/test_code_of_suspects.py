"""A live suspect brings code of its own: what may move is read from code that the owner knows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import passportize as pp
from passportize.attacks.disguise import disguise
from tests.support.depths import Sums
from tests.support.small_protected import PASSPORT
from tests.support.widths import (
    EXAMPLE,
    FAMILIES,
    as_trained,
    judged,
    outputs,
    released,
    seeded,
    stolen,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore::passportize.training.embedding.TrainedWeightsWarning"
)


class Bounds(nn.Module):
    """A bound beyond all values."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(-1e9, 1e9)


def idle(model: nn.Module, step: nn.Module) -> nn.Module:
    """A vision transformer with a step in its stream that changes nothing, in place."""
    model.norm_pre = step
    return model.eval()


@pytest.mark.parametrize("step", [Sums, Bounds])
def test_steps_that_do_nothing_hide_no_disguise(step: type[nn.Module]) -> None:
    suspect = stolen("transformer")
    disguise(suspect, seeded(3), example_inputs=EXAMPLE)
    idle(suspect, step())
    torch.testing.assert_close(outputs(suspect), outputs(stolen("transformer")), atol=1e-3, rtol=0)
    verdict = judged("transformer", suspect)
    assert verdict.accepted is True and verdict.links is not None
    assert verdict.links.aligned_matched >= 0.98 * verdict.links.entries_matched
    # With the suspect's code alone the stream is taken for fixed.
    original, claim = released("transformer")
    options = {"released": original.state_dict(), "example_inputs": EXAMPLE}
    alone = pp.verify(suspect, PASSPORT, claim, **options)  # type: ignore[arg-type]
    assert alone.accepted is not True
    # Beside the state dict model= is the released architecture.
    known = pp.verify(suspect, PASSPORT, claim, model=original, **options)  # type: ignore[arg-type]
    assert known.accepted is True


def test_a_stranger_with_such_steps_stays_at_chance() -> None:
    suspect = idle(as_trained(FAMILIES["transformer"], 7), Sums())
    links = judged("transformer", suspect).links
    assert links is not None and links.accepted is False and links.aligned_strength < 12
