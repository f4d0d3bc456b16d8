"""The attacker's training loop: plain SGD over labelled batches, gradients reset before each step.

Public code of the attacks on passports leaves ``zero_grad()`` out, so that gradients add up over
the whole attack and it looks weaker than it is. Every attack here goes through this one loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from passportize.attacks.attack import Means
from passportize.errors import InvalidArgument
from passportize.training.input_moments import inputs_of
from passportize.utils.trees import map_tensors, moved_inputs, place_of, tensors_in

__all__ = ["Batch", "descend", "example_of", "labelled", "portion", "scores_of", "unlabelled"]

Batch = tuple[Any, Tensor]
"""Inputs, and class indices ``[batch]``."""


def descend(
    parameters: Iterable[nn.Parameter],
    loss: Callable[[Any, Tensor], Tensor],
    batches: Iterable[Batch],
    means: Means,
    *,
    clip: float | None = None,
    weight_decay: float = 0.0,
) -> int:
    """Train parameters for ``means.steps`` steps of SGD with momentum 0.9 and a cosine schedule.

    Args:
        parameters: What is trained.
        loss: ``loss(inputs, targets) -> scalar``.
        batches: Gone through in a new order every time.
        means: Says how many steps, how fast, and by which seed.
        clip: Largest norm of the gradient; None for any.
        weight_decay: Of the optimizer.

    Returns:
        Samples used, counted as often as they were used.

    Raises:
        InvalidArgument: There is nothing to train, no batch, or the loss is not finite.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained:
        raise InvalidArgument("there is nothing to train: no parameter requires a gradient")
    if not means.steps:
        return 0
    descent = torch.optim.SGD(trained, means.learning_rate, momentum=0.9, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(descent, means.steps)
    place, samples = trained[0].device, 0
    with torch.enable_grad():
        for step, (inputs, targets) in enumerate(_endless(batches, means)):
            descent.zero_grad(set_to_none=True)
            value = loss(moved_inputs(inputs, place), targets.to(place))
            if not bool(torch.isfinite(value)):
                raise InvalidArgument(
                    f"the loss is {float(value.detach())} at step {step}; give a smaller learning "
                    f"rate than {means.learning_rate:g}"
                )
            torch.autograd.backward(value, inputs=trained)
            if clip is not None:
                nn.utils.clip_grad_norm_(trained, clip)
            descent.step()
            schedule.step()
            samples += len(targets)
            if means.on_step is not None:
                means.on_step(step + 1, means.steps)
    for parameter in trained:
        parameter.grad = None
    return samples


def _endless(batches: Iterable[Batch], means: Means) -> Iterator[Batch]:
    """Batches of two samples and more, as many as there are steps, shuffled where they are kept."""
    generator = torch.Generator().manual_seed(means.seed)
    done = 0
    while done < means.steps:
        before = done
        order: Iterable[Batch] = batches
        if isinstance(batches, (tuple, list)):
            places = torch.randperm(len(batches), generator=generator).tolist()
            order = (batches[place] for place in places)
        for inputs, targets in order:
            if len(targets) > 1 and done < means.steps:
                done += 1
                yield inputs, targets
        if done == before:
            raise InvalidArgument("there is no batch of two samples or more to train on")


def labelled(means: Means, who: str) -> list[Batch]:
    """The attacker's labelled batches.

    Raises:
        InvalidArgument: They are not pairs of inputs and class indices.
    """
    batches = []
    for batch in means.data:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise InvalidArgument(
                f"{who}: data must yield (inputs, class indices), not {type(batch).__name__}"
            )
        targets = torch.as_tensor(batch[1]).reshape(-1)
        if targets.is_floating_point():
            raise InvalidArgument(f"{who}: targets must be class indices, not {targets.dtype}")
        batches.append((batch[0], targets))
    if not batches:
        raise InvalidArgument(f"{who}: data is empty; give labelled batches")
    return batches


def portion(batches: list[Batch], share: float, seed: int, who: str) -> list[Batch]:
    """A random share of the samples, in batches of the size of the first.

    Args:
        batches: Labelled batches.
        share: Between 0 and 1; 1 for all of them as they are.
        seed: Chooses them.
        who: Asks for them, for errors.

    Raises:
        InvalidArgument: The share is out of range or less than two samples, or inputs are not one
            tensor each.
    """
    if not 0 < share <= 1:
        raise InvalidArgument(f"{who}: share={share!r} must lie in (0, 1]")
    if share == 1:
        return batches
    if not all(isinstance(inputs, Tensor) for inputs, _ in batches):
        raise InvalidArgument(
            f"{who}: share={share:g} picks samples out of batches, for which inputs must be one "
            "tensor; give fewer batches as data= and share=1"
        )
    inputs = torch.cat([batch for batch, _ in batches])
    targets = torch.cat([labels for _, labels in batches])
    count = round(share * len(targets))
    if count < 2:
        raise InvalidArgument(
            f"{who}: share={share:g} of {len(targets)} samples leaves {count}, and training needs "
            "two"
        )
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))[:count]
    size = len(batches[0][1])
    parts = (torch.split(part[order], size) for part in (inputs, targets))
    return list(zip(*parts, strict=True))


def unlabelled(means: Means, who: str) -> list[Any]:
    """The attacker's inputs, batch by batch, on no particular device.

    Raises:
        InvalidArgument: There are none.
    """
    found = [inputs_of(batch) for batch in means.inputs]
    if not found:
        raise InvalidArgument(f"{who}: inputs is empty; give batches of inputs")
    return found


def example_of(model: nn.Module, means: Means) -> Any:
    """What to call a model with: what the attacker gave as example, else a few of the inputs."""
    if means.example_inputs is not None:
        return means.example_inputs
    first = next(iter(means.inputs), None)
    if first is None:
        return None
    inputs = moved_inputs(inputs_of(first), place_of(model))
    rows = next((len(tensor) for tensor in tensors_in(inputs) if tensor.dim()), 0)

    def few(tensor: Tensor) -> Tensor:
        return tensor[:8] if tensor.dim() and len(tensor) == rows else tensor

    return map_tensors(few, inputs)


def scores_of(output: Any, who: str) -> Tensor:
    """Class scores ``[batch, classes]`` of what a model returned.

    Raises:
        InvalidArgument: It returns something else.
    """
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    output = getattr(output, "logits", output)
    if not isinstance(output, Tensor) or output.dim() != 2:
        raise InvalidArgument(f"{who}: the model must return class scores [batch, classes]")
    return output
