"""Shifted residual streams: a disguise of transformers that changes no output.

A LayerNorm takes the mean over its channels. Where all that a weight writes is read by LayerNorms,
as in the residual stream of a pre-norm transformer, one vector may be added to all rows of the
weight: every channel changes by the same number, and the norms take it away again. With a large
vector all rows point the same way and all bits of the layer are the same. Responses of rows less
their mean (``AnchorPart.less_mean_row``) do not move. Behind a factor for each channel (LayerScale)
each row gets the vector divided by its factor; there the mean of factor times row is taken out
(:mod:`passportize.signature.factored_rows`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from passportize.attacks.attack import Attacked, Means, register_attack
from passportize.attacks.descent import example_of
from passportize.errors import InvalidArgument
from passportize.signature.rows import added_to_rows, row_positions
from passportize.signature.site import AnchorPart
from passportize.surgery.planning import plan
from passportize.tracing.unchanged import FunctionCheck

__all__ = ["shift_streams"]


@torch.no_grad()
def shift_streams(
    model: nn.Module,
    generator: torch.Generator | None = None,
    size: float = 5.0,
    example_inputs: Any = None,
) -> list[str]:
    """Add one random vector to all rows of every weight where that changes no output, in place.

    Tried are the weights that norms over channels are bound to, one by one; what changes the
    outputs on an example is taken back.

    Args:
        model: A plain model.
        generator: Source of the vectors.
        size: Their length, in root mean square lengths of a row.
        example_inputs: As in :func:`passportize.plan`; by default noise of the size that the model
            names.

    Returns:
        Names of the weights that were shifted.

    Raises:
        InvalidArgument: A negative size.
    """
    if not 0.0 <= size < float("inf"):
        raise InvalidArgument(f"shift_streams: size={size!r} must be a finite number, 0 or more")
    check = FunctionCheck(model, example_inputs)
    done = []
    for part in _written(model, example_inputs):
        weight = model.get_parameter(part.weight)
        kept = weight.detach().clone()
        factors = model.get_parameter(part.factor).flatten() if part.factor else None
        weight.copy_(_shifted(kept, part, size, generator, factors))
        if check.changed(model):
            weight.copy_(kept)
        else:
            done.append(part.weight)
    return done


def _written(model: nn.Module, example_inputs: Any) -> list[AnchorPart]:
    """What norms over channels are bound to upstream, each once."""
    parts: dict[str, AnchorPart] = {}
    for site in plan(model, example_inputs=example_inputs, check=False).sites:
        if site.anchor is None or len(site.anchor.parts) > 1 or "LayerNorm" not in site.layer_type:
            continue
        part = site.anchor.parts[0]
        if part.axis == "output":
            parts.setdefault(part.weight, part)
    return list(parts.values())


def _shifted(
    weight: Tensor,
    part: AnchorPart,
    size: float,
    generator: torch.Generator | None,
    factors: Tensor | None,
) -> Tensor:
    rows = weight.double().reshape(-1)[row_positions(weight, part)]
    vector = torch.randn(rows.shape[1], generator=generator, dtype=torch.float64).to(rows.device)
    length = size * rows.square().sum(1).mean().sqrt()
    added = vector * (length / torch.linalg.vector_norm(vector))
    if factors is not None:
        # A channel with the factor 0 can be given anything.
        divided = factors.double().abs().mean() / factors.double()
        added = torch.where(factors == 0, 0.0, divided)[:, None] * added
    return added_to_rows(weight, part, added)


@register_attack(
    "stream-shift",
    kind="removal",
    source="this library",
    expected="spoils what is read from rows before LayerNorms as they lie; here less their mean",
)
def _attack(model: nn.Module, means: Means, *, size: float = 5.0) -> Attacked:
    """A vector added to all rows that write a stream of LayerNorms; no output changes."""
    done = shift_streams(
        model, torch.Generator().manual_seed(means.seed), size, example_of(model, means)
    )
    if not done:
        raise InvalidArgument(
            f"stream-shift: {type(model).__name__} has no weight that LayerNorms alone read"
        )
    return Attacked(figures={"weights": len(done)})
