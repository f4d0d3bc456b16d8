"""A criterion for loops that call model and loss themselves, and the log of what it saw."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from passportize.layers.joint_forward import JointOutput
from passportize.training.loss import JointLoss, loss_of, private_targets
from passportize.utils.foreign import unsplit_loss_of

__all__ = ["JointCriterion", "JointMeter"]


class JointMeter:
    """Running means of the parts of the joint loss; sums stay on their device until read."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def add(self, loss: JointLoss, targets: Any = None) -> None:
        """Take one training step in.

        Args:
            loss: Its parts.
            targets: Targets of the private samples, class indices ``[rows]`` or one number for
                each class ``[rows, classes]``; other targets give no accuracy.
        """
        self._count("sign_loss", loss.sign, 1)
        self._count("public_loss", loss.public, 1)
        if loss.private is None:
            return
        self._count("private_loss", loss.private, 1)
        scores = loss.private_output
        if isinstance(scores, (tuple, list)):
            scores = scores[0]
        if not (isinstance(scores, Tensor) and scores.dim() == 2 and isinstance(targets, Tensor)):
            return
        classes = targets.argmax(1) if targets.shape == scores.shape else targets
        if classes.shape == scores.shape[:1]:
            hits = (scores.detach().argmax(1) == classes).sum()
            self._count("private_top1", 100 * hits, len(classes))

    def read(self, reset: bool = True) -> dict[str, float]:
        """Means since the last reset.

        ``sign_loss`` and ``public_loss``, and where the private branch ran ``private_loss`` and
        ``private_top1`` (percent, on training samples).
        """
        means = {name: float(total) / self.counts[name] for name, total in self.sums.items()}
        if reset:
            self.sums, self.counts = {}, {}
        return means

    def _count(self, name: str, total: Tensor, count: int) -> None:
        total = total.detach().to(torch.float64 if total.device.type == "cpu" else torch.float32)
        self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.counts[name] = self.counts.get(name, 0) + count


class JointCriterion(nn.Module):
    """Wraps a criterion so that it also takes what a model in joint training returns.

    >>> criterion = JointCriterion(nn.CrossEntropyLoss())
    >>> criterion(torch.zeros(2, 3), torch.tensor([0, 1])).dim()      # a plain output: as before
    0

    Args:
        criterion: ``criterion(output, targets) -> scalar``.
        private_criterion: Another one for the private branch, where the first asks for the whole
            batch. Jensen-Shannon losses of timm are known: the private branch gets their cross
            entropy, since its samples are the first of the batch and not whole groups.
        meter: Takes the parts of every loss in.
    """

    def __init__(
        self,
        criterion: Callable[[Any, Any], Tensor],
        private_criterion: Callable[[Any, Any], Tensor] | None = None,
        meter: JointMeter | None = None,
    ) -> None:
        super().__init__()
        self.criterion = criterion
        self.private_criterion = private_criterion or unsplit_loss_of(criterion)
        self.meter = meter or JointMeter()

    def forward(self, output: Any, targets: Any) -> Tensor:
        """The joint loss on a joint output, the criterion's own on any other."""
        if not isinstance(output, JointOutput):
            return self.criterion(output, targets)
        loss = loss_of(output, targets, self.criterion, self.private_criterion)
        self.meter.add(loss, private_targets(output, targets))
        return loss.total
