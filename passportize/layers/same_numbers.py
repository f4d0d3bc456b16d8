"""Whether two passes gave the same numbers, up to what rounding explains."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from passportize.layers.rehearsed_pass import Record

__all__ = ["Spread", "difference", "precision_of"]

_SMALL = 1e-3
"""Numbers that should be zero are compared with this part of the largest of their kind."""
_EXPLAINED = 20.0
"""How much more than a disturbance by rounding does may two passes differ."""
_TIGHT = {"leaves": 1e3, "buffers": 1e3, "gradients": 1e4}
"""Units of precision by which outputs, buffers and gradients may differ without further ado."""
_LOOSEST = 5e-2


def precision_of(root: nn.Module) -> float:
    """Relative error of one operation, in the type and on the device that a model computes in."""
    first = next((item for item in root.parameters() if item.is_floating_point()), None)
    if first is None:
        return torch.finfo(torch.float32).eps
    precision = torch.finfo(first.dtype).eps
    kind = first.device.type
    if torch.is_autocast_enabled(kind):
        precision = max(precision, torch.finfo(torch.get_autocast_dtype(kind)).eps)
    if kind == "cuda" and (
        torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
    ):
        precision = max(precision, 2.0**-11)
    return precision


class Spread:
    """How far two passes over the same samples may differ.

    A few units of precision without further ado. Where they differ by more, what rounding does to
    this model is measured: the outputs of its norms are disturbed by as much as that.

    Args:
        precision: Relative error of one operation.
        measure: Runs the disturbed pass; called once, if at all.

    Attributes:
        blunt: Whether rounding moves this model's numbers so far that they say little.
    """

    def __init__(self, precision: float, measure: Callable[[], Record]) -> None:
        self.precision = precision
        self.measure = measure
        self.disturbed: Record | None = None
        self.blunt = False

    def allows(self, kind: str, plain: Record, found: float) -> bool:
        """Whether a difference in outputs, buffers or gradients is explained by rounding."""
        if found <= min(_LOOSEST, _TIGHT[kind] * self.precision):
            return True
        if self.disturbed is None:
            self.disturbed = self.measure()
        noise, _ = _furthest(getattr(plain, kind), getattr(self.disturbed, kind))
        explained = found <= _EXPLAINED * noise
        self.blunt |= explained and found > _LOOSEST
        return explained


def difference(plain: Record, other: Record, spread: Spread) -> str:
    """In what two passes differ by more than rounding explains; empty if in nothing."""
    if plain.leaves.keys() != other.leaves.keys():
        return "its output has other parts"
    for path, one in plain.leaves.items():
        two = other.leaves[path]
        if isinstance(one, Tensor) != isinstance(two, Tensor) or (
            isinstance(one, Tensor) and one.shape != two.shape
        ):
            return f"an output of {_shape(one)} becomes one of {_shape(two)}"
    for kind, what in (
        ("leaves", "its output"),
        ("buffers", "its statistics and other buffers"),
        ("gradients", "its gradients"),
    ):
        far, where = _furthest(getattr(plain, kind), getattr(other, kind))
        if not spread.allows(kind, plain, far):
            verb, place = ("differs", "") if kind == "leaves" else ("differ", f" ({where})")
            return f"{what} {verb} by {far:.2g} of the largest{place}"
    return ""


def _shape(leaf: Any) -> str:
    return f"shape {tuple(leaf.shape)}" if isinstance(leaf, Tensor) else type(leaf).__name__


def _furthest(one: dict[Any, Any], two: dict[Any, Any]) -> tuple[float, Any]:
    """The largest difference, relative to the largest number of its tensor, and where it is."""
    sizes = {key: _size(item) for key, item in one.items()}
    floor = _SMALL * max(sizes.values(), default=0.0)
    worst, where = 0.0, None
    for key in one.keys() | two.keys():
        left, right = one.get(key), two.get(key)
        if isinstance(left, Tensor) and isinstance(right, Tensor):
            far = _distance(left, right, max(sizes[key], floor))
        elif isinstance(left, Tensor) or isinstance(right, Tensor):
            # A parameter that one of the passes does not reach: its gradient is none or zero.
            far = max(_size(left), _size(right)) / (floor or 1.0)
        elif isinstance(left, float) and isinstance(right, float):
            far = abs(left - right) / max(abs(left), 1e-12)
        else:
            plain = isinstance(left, (int, str, bytes))
            far = float(left != right) if plain else 0.0
        if far > worst or where is None:
            worst, where = far, key
    return worst, where


def _size(item: Any) -> float:
    """The largest finite number of a tensor."""
    if not isinstance(item, Tensor) or not item.numel() or not _has_fractions(item):
        return 0.0
    size = float(item.abs().max())
    return size if math.isfinite(size) else float(item.nan_to_num(0.0, 0.0, 0.0).abs().max())


def _distance(left: Tensor, right: Tensor, size: float) -> float:
    if left.shape != right.shape:
        return math.inf
    if not left.numel():
        return 0.0
    if not _has_fractions(left):
        return float(not torch.equal(left, right))
    far = float((left - right).abs().max())
    if not math.isfinite(far):
        if not torch.equal(left.isfinite(), right.isfinite()):
            return math.inf
        far = float((left - right).abs().nan_to_num(0.0, 0.0, 0.0).max())
    if not far:
        return 0.0
    return far / size if size else math.inf


def _has_fractions(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
