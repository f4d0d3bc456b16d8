"""The last resort: the last weight module of fitting width that is registered before a norm."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from torch import nn

from passportize.anchors.trail import TAKEN, Attempt, Log, Met
from passportize.anchors.weight_parts import Refusal, part_of
from passportize.signature.rows import anchor_width
from passportize.signature.site import AnchorPart
from passportize.tracing.weight_layers import owns_weight
from passportize.utils.foreign import merged_later

__all__ = ["search_by_order"]


def search_by_order(
    model: nn.Module, widths: Mapping[str, Sequence[int]], without: Collection[str]
) -> dict[str, Attempt]:
    """Look for an anchor by registration order alone, which is a guess.

    Args:
        model: The model.
        widths: Acceptable channel counts of each norm, most wanted first.
        without: Names of the norms that have no anchor yet.
    """
    order = list(model.named_modules())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    made: dict[str, Attempt] = {}
    merged = merged_later(model)
    for position, (norm, _) in enumerate(order):
        if norm not in without:
            continue
        log = Log()
        for name, module in reversed(order[:position]):
            if name in merged:
                continue
            answer = _answer(module, names, widths[norm])
            if isinstance(answer, AnchorPart):
                log.add(Met(None, TAKEN, answer.weight, parts=(answer,)))
                break
            if answer is not None:
                log.add(Met(None, answer.why, answer.weight))
        made[norm] = log.attempt("order", "order", next(iter(widths[norm]), 0), None, None)
    return made


def _answer(
    module: nn.Module, names: Mapping[int, str], widths: Sequence[int]
) -> AnchorPart | Refusal | None:
    """The rows of a weight module, why they do not fit, or None for other modules."""
    weight = module._parameters.get("weight")
    if not owns_weight(module) or weight is None or nn.parameter.is_lazy(weight):
        return None
    if id(weight) not in names:
        return None
    part = part_of(module, names[id(weight)])
    made = anchor_width(weight.shape, part)
    if made not in widths:
        wanted = " or ".join(map(str, widths))
        return Refusal(f"it makes {made} channels, not {wanted}", part.weight)
    return replace(part, channels=made)
