"""Overwriting: the thief embeds a passport of their own by the same scheme, in training."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from passportize.attacks.attack import Attacked, Forged, Means, register_attack
from passportize.attacks.descent import descend, example_of, labelled, scores_of

__all__: list[str] = []


@register_attack(
    "overwrite",
    kind="removal",
    needs=("data", "scheme", "passport"),
    source="Uchida et al. 2017; Fan et al. 2019",
    expected="weakens 'uchida'; puts a second mark beside that of a passport, which stays",
)
def _attack(model: nn.Module, means: Means) -> Attacked:
    """Embed a second mark by the owner's scheme, with a passport of one's own."""
    assert means.scheme is not None and means.passport is not None
    batches = labelled(means, "overwrite")
    protection = means.scheme.protect(model, means.passport, example_of(model, means))
    protection.model.train()

    def criterion(output: Any, targets: Any) -> Tensor:
        return functional.cross_entropy(scores_of(output, "overwrite"), targets)

    samples = descend(
        protection.parameters(),
        lambda inputs, targets: protection.loss(inputs, targets, criterion),
        batches,
        means,
        weight_decay=5e-4,
    )
    release = protection.release()
    forged = Forged(means.passport, release.claim)
    return Attacked(release.model, forged, means.steps, samples)
