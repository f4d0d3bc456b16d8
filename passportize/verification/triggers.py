"""Black-box verification: inputs that nobody else has, and the labels that the owner trained in.

Inputs and labels come from the passport's secret. Under the null hypothesis, that the suspect knows
nothing of it, each answer matches with probability exactly ``1 / classes``, whatever the model does
with such inputs, because the labels are drawn uniformly and independently of them. So the p-value
is that of a binomial. Train on the triggers along with the other data; publish the commitment of
the passport before the release.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from passportize.errors import InvalidArgument
from passportize.passport.passport import Passport
from passportize.signature.null_model import log2_binomial_tail

__all__ = ["TriggerSet", "TriggerVerdict", "check_triggers", "cloud_triggers", "image_triggers"]

_KNOTS = 6
_CELLS = 4


@dataclass(frozen=True, repr=False)
class TriggerSet:
    """Secret inputs and labels; :func:`repr` shows neither.

    Attributes:
        inputs: One trigger per row, float32.
        labels: int64 ``[count]``.
        classes: Number of classes that the labels were drawn from.
    """

    inputs: Tensor
    labels: Tensor
    classes: int

    def __repr__(self) -> str:
        return f"TriggerSet({len(self.labels)} triggers, {self.classes} classes)"


@dataclass(frozen=True)
class TriggerVerdict:
    """Result of :func:`check_triggers`.

    Attributes:
        matched: Triggers that the suspect answered as trained in.
        total: Triggers shown.
        classes: Number of classes.
        strength: ``-log2`` of the probability of so many matches by chance, in bits.
        decoys: Decoys shown; 0 if none were.
        decoys_matched: Decoys that happened to be answered as their secret labels say.
    """

    matched: int
    total: int
    classes: int
    strength: float
    decoys: int = 0
    decoys_matched: int = 0

    def __str__(self) -> str:
        text = (
            f"{self.matched} of {self.total} triggers answered as trained in "
            f"({self.total / self.classes:.1f} expected by chance): {self.strength:.0f} bits"
        )
        if self.decoys:
            text += f"; of {self.decoys} decoys, {self.decoys_matched}"
        return text


def cloud_triggers(
    passport: Passport, count: int, points: int, classes: int, *, name: str = ""
) -> TriggerSet:
    """Point clouds along secret closed paths, with secret labels.

    Each cloud follows straight lines through six points in the unit ball, so clouds differ from
    each other as much as they do from solids, and a network can tell them apart.

    Args:
        passport: The owner's passport.
        count: Number of triggers; 20 to 100 are usual.
        points: Points per cloud.
        classes: Number of classes of the model.
        name: Tells several trigger sets of one passport apart.

    Returns:
        Clouds float32 ``[count, points, 3]`` in the unit ball, and labels. The first triggers do
        not depend on ``count``.

    Raises:
        InvalidArgument: A number is out of range.
    """
    if count < 1 or points < 1 or not 2 <= classes <= 65536:
        raise InvalidArgument("count and points must be 1 or more, classes 2 to 65,536")
    clouds, labels = [], []
    for index in range(count):
        label = f"triggers/{name}/{points}/{classes}/{index}"
        knots = _uniform(passport, f"{label}/knots", 3 * _KNOTS).reshape(_KNOTS, 3) * 2 - 1
        knots = knots / np.maximum(np.linalg.norm(knots, axis=1, keepdims=True), 1.0)
        along = _uniform(passport, f"{label}/points", points) * _KNOTS
        corner = along.astype(np.int64)
        share = (along - corner)[:, None]
        clouds.append((1 - share) * knots[corner] + share * knots[(corner + 1) % _KNOTS])
        labels.append(_label(passport, f"{label}/label", classes))
    inputs = torch.from_numpy(np.stack(clouds)).to(torch.float32)
    return TriggerSet(inputs, torch.tensor(labels), classes)


def image_triggers(
    passport: Passport, count: int, shape: tuple[int, int, int], classes: int, *, name: str = ""
) -> TriggerSet:
    """Pictures of secret patches, with secret labels.

    Each picture is a grid of four by four patches, each channel of each patch of its own secret
    brightness: unlike photographs, unlike each other, and the same after a shift of a few pixels.

    Args:
        passport: The owner's passport.
        count: Number of triggers; 20 to 100 are usual.
        shape: Channels, height and width of a picture.
        classes: Number of classes of the model.
        name: Tells several trigger sets of one passport apart.

    Returns:
        Pictures float32 ``[count, *shape]`` in [0, 1], to be prepared as the model's other inputs,
        and labels. The first triggers do not depend on ``count``.

    Raises:
        InvalidArgument: A number is out of range.
    """
    if count < 1 or len(shape) != 3 or min(shape) < 1 or not 2 <= classes <= 65536:
        raise InvalidArgument("count and each of shape must be 1 or more, classes 2 to 65,536")
    channels, height, width = shape
    rows, columns = (np.arange(size) * _CELLS // size for size in (height, width))
    pictures, labels = [], []
    for index in range(count):
        label = f"image triggers/{name}/{channels}/{height}/{width}/{classes}/{index}"
        patches = _uniform(passport, f"{label}/patches", channels * _CELLS**2)
        patches = patches.reshape(channels, _CELLS, _CELLS)
        pictures.append(patches[:, rows][:, :, columns])
        labels.append(_label(passport, f"{label}/label", classes))
    inputs = torch.from_numpy(np.stack(pictures)).to(torch.float32)
    return TriggerSet(inputs, torch.tensor(labels), classes)


def check_triggers(
    predict: Callable[[Tensor], Tensor],
    triggers: TriggerSet,
    *,
    decoys: TriggerSet | None = None,
    batch: int = 64,
) -> TriggerVerdict:
    """Show the triggers to a suspect and count the answers.

    Args:
        predict: Takes inputs ``[n, ...]`` and returns class scores ``[n, classes]`` or labels
            ``[n]``: a model in eval mode, or a function around a remote one.
        triggers: The owner's trigger set.
        decoys: Another set of the same kind (another ``name``) that no model was trained on: the
            share of them that match measures the chance rate, and does not enter the strength.
        batch: Inputs per call.

    Raises:
        InvalidArgument: ``predict`` returns something of another shape.
    """
    matched = _matches(predict, triggers, batch)
    total = len(triggers.labels)
    strength = max(0.0, -log2_binomial_tail(matched, total, 1 / triggers.classes))
    if decoys is None:
        return TriggerVerdict(matched, total, triggers.classes, strength)
    chance = _matches(predict, decoys, batch)
    return TriggerVerdict(matched, total, triggers.classes, strength, len(decoys.labels), chance)


def _matches(predict: Callable[[Tensor], Tensor], triggers: TriggerSet, batch: int) -> int:
    """How many inputs are answered by their labels."""
    matched = 0
    with torch.no_grad():
        for start in range(0, len(triggers.labels), batch):
            inputs = triggers.inputs[start : start + batch]
            labels = triggers.labels[start : start + batch]
            answer = predict(inputs)
            if not isinstance(answer, Tensor) or answer.dim() not in (1, 2):
                raise InvalidArgument(
                    "predict must return class scores [n, classes] or labels [n] as a tensor"
                )
            guesses = answer.argmax(dim=1) if answer.dim() == 2 else answer
            if len(guesses) != len(labels):
                raise InvalidArgument(f"predict returned {len(guesses)} rows for {len(labels)}")
            matched += int((guesses.cpu() == labels).sum())
    return matched


def _uniform(passport: Passport, label: str, count: int) -> NDArray[np.float64]:
    """Numbers in [0, 1) on a grid of 2**-16: the same on every machine."""
    words = np.frombuffer(passport.stream(label, 2 * count), dtype="<u2")
    values: NDArray[np.float64] = words.astype(np.float64) / 65536.0
    return values


def _label(passport: Passport, label: str, classes: int) -> int:
    """A uniform class: 256 bits modulo the number of classes are as good as exact."""
    return int.from_bytes(passport.stream(label, 32), "big") % classes
