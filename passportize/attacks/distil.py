"""Distillation: a fresh network learns the outputs of the released one, and inherits no weight.

It removes every mark that lies in weights, ours too, at the price of a training: only answers to
secret triggers can follow. It is here so that nobody takes silence for a claim.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from passportize.attacks.attack import Attacked, Means, register_attack
from passportize.attacks.descent import descend, scores_of, unlabelled
from passportize.errors import InvalidArgument
from passportize.utils.frozen import frozen_random_state
from passportize.utils.trees import call_model, tensors_in

__all__ = ["fresh_copy"]


def fresh_copy(model: nn.Module, seed: int) -> nn.Module:
    """A copy of a model with every parameter drawn anew.

    Args:
        model: A plain model.
        seed: Of what is drawn.

    Raises:
        InvalidArgument: A module has parameters and no ``reset_parameters``.
    """
    made = copy.deepcopy(model)
    with frozen_random_state(cuda=True):
        torch.manual_seed(seed)
        for name, module in made.named_modules():
            own = [key for key, value in module._parameters.items() if value is not None]
            reset = getattr(module, "reset_parameters", None)
            if own and not callable(reset):
                raise InvalidArgument(
                    f"distil: {name or 'the model'}.{own[0]} cannot be drawn anew; give fresh=, a "
                    "function that makes an untrained model"
                )
            if callable(reset):
                reset()
    return made


@register_attack(
    "distil",
    kind="removal",
    needs=("inputs",),
    source="Hinton et al. 2015; as an attack, Lukas et al., IEEE S&P 2022",
    expected="removes every mark that lies in weights, those of this library too",
)
def _attack(model: nn.Module, means: Means, *, temperature: float = 4.0) -> Attacked:
    """A fresh network is trained on the outputs of the released one: expected to remove."""
    if not temperature > 0:
        raise InvalidArgument(f"distil: temperature={temperature!r} must be above 0")
    student = means.fresh() if means.fresh is not None else fresh_copy(model, means.seed)
    model.eval().requires_grad_(False)
    student.train()
    pairs: list[tuple[Any, Tensor]] = []
    for inputs in unlabelled(means, "distil"):
        rows = next((len(tensor) for tensor in tensors_in(inputs) if tensor.dim()), 0)
        # Only their number is used.
        pairs.append((inputs, torch.zeros(rows, dtype=torch.int64)))

    def loss(inputs: Any, _: Tensor) -> Tensor:
        with torch.no_grad():
            taught = scores_of(call_model(model, inputs), "distil") / temperature
        learned = scores_of(call_model(student, inputs), "distil") / temperature
        if taught.shape != learned.shape:
            raise InvalidArgument(
                f"distil: the fresh model gives {tuple(learned.shape)} scores, the released one "
                f"{tuple(taught.shape)}"
            )
        divergence = functional.kl_div(
            learned.log_softmax(1), taught.log_softmax(1), reduction="batchmean", log_target=True
        )
        return divergence * temperature**2

    samples = descend(student.parameters(), loss, pairs, means, weight_decay=5e-4)
    return Attacked(student, steps=means.steps, samples=samples)
