"""Fine-tuning in its four usual forms: last layer or all layers, head kept or re-drawn.

FTLL and FTAL go on from the released head, RTLL and RTAL draw it anew (as one does for another set
of classes). Last layer means that nothing but the head changes, running statistics included.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from passportize.attacks.attack import Attacked, Means, register_attack
from passportize.attacks.descent import Batch, descend, labelled, portion, scores_of
from passportize.errors import InvalidArgument
from passportize.tracing.weight_layers import is_weight_module
from passportize.utils.frozen import frozen_random_state, trial
from passportize.utils.trees import call_model, moved_inputs, place_of

__all__ = ["FORMS", "find_head", "fine_tune"]

FORMS = ("FTLL", "FTAL", "RTLL", "RTAL")


def find_head(model: nn.Module, inputs: Any) -> tuple[str, nn.Module]:
    """Name and module of the last linear layer or convolution that runs.

    Args:
        model: A plain model; it is left as it was.
        inputs: One batch.

    Raises:
        InvalidArgument: None runs.
    """
    names = {module: name for name, module in model.named_modules() if is_weight_module(module)}
    ran: list[nn.Module] = []

    def note(module: nn.Module, *_: Any) -> None:
        ran.append(module)

    with trial(model):
        hooks = [module.register_forward_hook(note) for module in names]
        try:
            call_model(model.eval(), moved_inputs(inputs, place_of(model)))
        finally:
            for hook in hooks:
                hook.remove()
    if not ran:
        raise InvalidArgument(f"fine-tune: no linear layer of {type(model).__name__} runs")
    return names[ran[-1]], ran[-1]


def fine_tune(
    model: nn.Module, batches: list[Batch], means: Means, form: str, classes: int = 0
) -> int:
    """Train a plain model further on labelled data, in place.

    Args:
        model: A plain classifier.
        batches: Labelled batches.
        means: Steps, learning rate and seed.
        form: One of :data:`FORMS`.
        classes: Outputs of a head that is drawn anew; 0 for as many as it has.

    Returns:
        Samples used.

    Raises:
        InvalidArgument: No such form, or the labels do not fit the head.
    """
    if form not in FORMS:
        raise InvalidArgument(f"fine-tune: form={form!r} must be one of {', '.join(FORMS)}")
    redrawn, all_layers = form.startswith("RT"), form.endswith("AL")
    if classes and not redrawn:
        raise InvalidArgument(f"fine-tune: classes= goes with RTLL and RTAL; {form} keeps the head")
    name, head = find_head(model, batches[0][0])
    if redrawn:
        head = _redrawn(model, name, head, classes, means.seed)
    highest = max(int(targets.max()) for _, targets in batches)
    outputs = getattr(head, "out_features", getattr(head, "out_channels", highest + 1))
    if highest >= outputs:
        raise InvalidArgument(
            f"fine-tune: the labels go up to {highest} and the head has {outputs} outputs; give "
            f"form='RTAL' and classes={highest + 1}"
        )
    model.requires_grad_(all_layers)
    head.requires_grad_(True)
    model.train(all_layers)

    def loss(inputs: Any, targets: torch.Tensor) -> torch.Tensor:
        scores = scores_of(call_model(model, inputs), "fine-tune")
        return functional.cross_entropy(scores, targets)

    samples = descend(model.parameters(), loss, batches, means, weight_decay=5e-4)
    model.requires_grad_(True).eval()
    return samples


def _redrawn(model: nn.Module, name: str, head: nn.Module, classes: int, seed: int) -> nn.Module:
    if classes and not isinstance(head, nn.Linear):
        raise InvalidArgument(
            f"fine-tune: {name} is a {type(head).__name__}; another number of classes is possible "
            "behind a linear layer only"
        )
    with frozen_random_state(cuda=True):
        torch.manual_seed(seed)
        if isinstance(head, nn.Linear) and classes not in (0, head.out_features):
            made = nn.Linear(head.in_features, classes, head.bias is not None)
            made = made.to(head.weight.device, head.weight.dtype)
            if not name:
                raise InvalidArgument("fine-tune: a model that is its own head keeps its classes")
            model.set_submodule(name, made)
            return made
        reset = getattr(head, "reset_parameters", None)
        if reset is None:
            raise InvalidArgument(f"fine-tune: {name} cannot be drawn anew")
        reset()
    return head


@register_attack(
    "fine-tune",
    kind="removal",
    needs=("data",),
    source="usual; the four forms as in Adi et al., USENIX Security 2018",
    expected="removes no passport; FTLL and RTLL do not touch it",
)
def _attack(
    model: nn.Module, means: Means, *, form: str = "FTAL", classes: int = 0, share: float = 1.0
) -> Attacked:
    """Training goes on: FTLL, FTAL, RTLL or RTAL, on a share of the data."""
    batches = portion(labelled(means, "fine-tune"), share, means.seed, "fine-tune")
    samples = fine_tune(model, batches, means, form, classes)
    return Attacked(steps=means.steps, samples=samples)
