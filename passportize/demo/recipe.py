"""The recipe that demo and benchmarks share: a small timm ResNet, one training loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from passportize.data.images import ImageData, batches
from passportize.errors import InvalidArgument, MissingExtra
from passportize.layers.model import branch as one_branch
from passportize.layers.model import is_passportized
from passportize.training.loss import joint_loss

__all__ = [
    "ARCHITECTURE",
    "ARCHITECTURE_ARGUMENTS",
    "History",
    "Step",
    "accuracy",
    "build_model",
    "shifted",
    "train",
]

ARCHITECTURE = "resnet10t"
ARCHITECTURE_ARGUMENTS = {
    "in_chans": 1,
    "stem_width": 16,
    "channels": (16, 32, 64, 128),
    "zero_init_last": True,
}
"""What ``timm.create_model`` is called with, beside the number of classes."""

OPTIMIZERS = ("sgd", "adamw")


@dataclass(frozen=True)
class Step:
    """Where training is, for progress bars.

    Attributes:
        number, total: Optimizer steps done and to do.
        loss: Total loss of this step.
    """

    number: int
    total: int
    loss: float


@dataclass
class History:
    """What happened in training.

    Attributes:
        public, private, sign: Mean of each loss per epoch; private is NaN in epochs without a
            private pass, and with a plain model, whose sign loss is 0.
        finite: Whether every loss was.
        seconds: Wall-clock time of the whole training.
        step_seconds: The same per step.
    """

    public: list[float] = field(default_factory=list)
    private: list[float] = field(default_factory=list)
    sign: list[float] = field(default_factory=list)
    finite: bool = True
    seconds: float = 0.0
    step_seconds: float = 0.0


def build_model(seed: int, num_classes: int = 10) -> nn.Module:
    """A timm ResNet with ten layers, 0.3 million parameters; the global random state stays.

    Args:
        seed: Of the initial weights.
        num_classes: Width of the classifier.

    Raises:
        MissingExtra: timm is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise MissingExtra(
            "the demo's model comes from timm, which is not installed: "
            "pip install 'passportize[demo]'"
        ) from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = timm.create_model(
            ARCHITECTURE, num_classes=num_classes, **ARCHITECTURE_ARGUMENTS
        )
    return model


def train(
    model: nn.Module,
    data: ImageData,
    *,
    epochs: int = 20,
    lr: float = 0.05,
    optimizer: str = "sgd",
    batch: int = 64,
    seed: int = 0,
    on_step: Callable[[Step], None] | None = None,
) -> History:
    """Train a model, with its passports if it has some and plainly if not.

    Apart from the loss both cases are the same, with the same order of images and shifts for the
    same seed: SGD with momentum 0.9 and weight decay 5e-4, or AdamW with weight decay 0.05; a one
    cycle schedule (L. Smith and N. Topin, 2017) whose first fifth warms up; random shifts of up
    to an eighth of the picture; an incomplete last batch is left out.

    Args:
        model: Plain or passportized, on any device; trained in place.
        data: What to train on.
        epochs: Passes over the train split.
        lr: Highest learning rate of the cycle.
        optimizer: ``"sgd"`` or ``"adamw"``.
        batch: Images per step.
        seed: Of order and shifts.
        on_step: Called after every step.

    Raises:
        InvalidArgument: No such optimizer, or less than one step to do.
    """
    if optimizer not in OPTIMIZERS:
        raise InvalidArgument(f"optimizer={optimizer!r}: use 'sgd' or 'adamw'")
    per_epoch = len(data.train_images) // batch if batch > 0 else 0
    total = epochs * per_epoch
    if total < 1:
        raise InvalidArgument(
            f"epochs={epochs} and batch={batch} with {len(data.train_images)} images leave "
            "nothing to do"
        )
    descent = _optimizer(model, optimizer, lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(descent, lr, total_steps=total, pct_start=0.2)
    generator = torch.Generator().manual_seed(seed)
    place = next(model.parameters()).device
    joint = is_passportized(model)
    history = History()
    model.train()
    start = time.perf_counter()
    for epoch in range(epochs):
        losses = []
        order = torch.randperm(len(data.train_images), generator=generator)
        for position in range(per_epoch):
            chosen = order[position * batch : (position + 1) * batch]
            images = shifted(data.train_images[chosen], generator).to(place)
            labels = data.train_labels[chosen].to(place)
            total_loss, parts = _losses(model, images, labels, joint)
            descent.zero_grad()
            torch.autograd.backward(total_loss)
            descent.step()
            schedule.step()
            losses.append(parts)
            if on_step is not None:
                on_step(Step(epoch * per_epoch + position + 1, total, float(total_loss.detach())))
        _record(history, losses)
    model.eval()
    history.seconds = time.perf_counter() - start
    history.step_seconds = history.seconds / total
    return history


def accuracy(
    model: nn.Module, images: Tensor, labels: Tensor, branch: str | None = None, size: int = 512
) -> float:
    """Top-1 accuracy in percent; the model is in eval mode for its length only.

    Args:
        model: Any classifier.
        images: ``[N, C, H, W]``.
        labels: ``[N]``.
        branch: ``"public"`` or ``"private"`` of a passportized model; None to run it as it is.
        size: Images per forward pass.
    """
    place = next(model.parameters()).device
    training = model.training
    hits = 0
    model.eval()
    try:
        with torch.no_grad(), one_branch(model, branch) if branch else nullcontext():
            for some, answers in batches(images, labels, size):
                hits += int((model(some.to(place)).argmax(1).cpu() == answers.cpu()).sum())
    finally:
        model.train(training)
    return 100.0 * hits / len(labels)


def _optimizer(model: nn.Module, name: str, lr: float) -> torch.optim.Optimizer:
    if name == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)


def _losses(
    model: nn.Module, images: Tensor, labels: Tensor, joint: bool
) -> tuple[Tensor, tuple[Tensor, Tensor | None, Tensor | None]]:
    if not joint:
        loss = functional.cross_entropy(model(images), labels)
        return loss, (loss.detach(), None, None)
    parts = joint_loss(model, images, labels, functional.cross_entropy)
    private = None if parts.private is None else parts.private.detach()
    return parts.total, (parts.public.detach(), private, parts.sign.detach())


def _record(history: History, losses: list[tuple[Tensor, Tensor | None, Tensor | None]]) -> None:
    """Means of one epoch, and whether each of its losses was finite."""
    series = (history.public, history.private, history.sign)
    for index, empty in enumerate((float("nan"), float("nan"), 0.0)):
        values = [float(value) for parts in losses if (value := parts[index]) is not None]
        mean = sum(values) / len(values) if values else empty
        series[index].append(mean)
        if values and not torch.isfinite(torch.tensor(mean)):
            history.finite = False


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Every image by its own whole number of pixels, at the border continued."""
    size = images.shape[-1]
    reach = size // 8
    if not reach:
        return images
    moves = torch.randint(-reach, reach + 1, (2, len(images), 1), generator=generator)
    rows, columns = (torch.arange(size) + moves).clamp(0, size - 1)
    samples = torch.arange(len(images))[:, None, None]
    moved = images.permute(0, 2, 3, 1)[samples, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2).contiguous()
