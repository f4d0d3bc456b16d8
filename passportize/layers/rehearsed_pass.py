"""One forward and backward pass that leaves nothing behind, and comparing two of them."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from passportize.layers.layer import PassportLayer
from passportize.layers.switch import Pass, Switch
from passportize.utils.draws import AlikeDraws
from passportize.utils.frozen import frozen_model
from passportize.utils.records import parts_of
from passportize.utils.trees import Path, copied, leaves_in

__all__ = ["Arguments", "Record", "Spread", "difference", "precision_of", "run_once", "tree_record"]

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
_SMALL = 1e-3
"""Numbers that should be zero are compared with this part of the largest of their kind."""
_EXPLAINED = 20.0
"""How much more than a disturbance by rounding does may two passes differ."""
_TIGHT = {"leaves": 1e3, "buffers": 1e3, "gradients": 1e4}
"""Units of precision by which outputs, buffers and gradients may differ without further ado."""
_LOOSEST = 5e-2


@dataclass
class Record:
    """What a pass gave.

    Attributes:
        output: What the model returned.
        leaves: Tensors and numbers of the public output, by path.
        buffers: Buffers of the host behind the pass.
        gradients: Of a random function of the public output, by parameter.
    """

    output: Any
    leaves: dict[Path, Any] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)


def tree_record(output: Any) -> Record:
    """A record of an output alone."""
    return Record(output, {path: _detached(leaf) for path, leaf in leaves_in(output)})


def _detached(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def run_once(
    root: nn.Module,
    switch: Switch,
    mode: Pass,
    arguments: Arguments,
    draws: AlikeDraws,
    gradients: bool = True,
    around: Callable[[], Any] | None = None,
) -> Record:
    """Run one pass in training mode; the model is left as it was, but for values of parameters.

    Args:
        root: The passportized model.
        switch: Its switch.
        mode: Which pass.
        arguments: What to call it with; left as it is.
        draws: How random numbers are drawn.
        gradients: Whether to take gradients of the public output.
        around: Puts hooks in; frozen_model takes them out again.
    """
    args, kwargs = copied(arguments)
    with frozen_model(root, values=True), torch.set_grad_enabled(gradients):
        if not root.training:
            root.train()
        if around is not None:
            around()
        _seed()
        before, switch.mode = switch.mode, mode
        try:
            with draws:
                output = root(*args, **kwargs)
                public = output.public if mode is Pass.JOINT else output
                record = tree_record(public)
                record.output = output
                record.buffers = {name: item.clone() for name, item in _host_buffers(root)}
                if gradients:
                    record.gradients = _gradients(root, public)
            return record
        finally:
            switch.mode = before


def _seed() -> None:
    torch.manual_seed(0)
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)


def _host_buffers(root: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The buffers that the plain model has as well; of a sparse one indices and values."""
    ours = {
        id(buffer)
        for module in root.modules()
        if isinstance(module, PassportLayer)
        for buffer in module.passport.buffers()
    }
    for name, buffer in root.named_buffers():
        if id(buffer) not in ours:
            for place, part in enumerate(parts_of(buffer)):
                yield (f"{name}, part {place}" if place else name), part


def _gradients(root: nn.Module, output: Any) -> dict[str, Tensor]:
    """Gradients of the host's parameters of a random linear function of the output."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    terms = []
    for _, leaf in leaves_in(output):
        if isinstance(leaf, Tensor) and leaf.requires_grad and leaf.is_floating_point():
            factor = torch.randn(leaf.shape, generator=generator, device="cpu")
            terms.append((leaf * factor.to(leaf.device, leaf.dtype)).sum().float())
    ours = {
        id(parameter)
        for module in root.modules()
        if isinstance(module, PassportLayer)
        for parameter in module.passport.parameters()
    }
    # Hooks of others on gradients are not for us to call.
    named = {
        name: parameter
        for name, parameter in root.named_parameters()
        if parameter.requires_grad and id(parameter) not in ours and not parameter._backward_hooks
    }
    if not terms or not named:
        return {}
    total = torch.stack([term.to(terms[0].device) for term in terms]).sum()
    try:
        # Never backward(): it would tell DDP's reducer and the hooks of others.
        found = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    except RuntimeError:  # reentrant checkpointing knows backward() only
        return {}
    return {
        name: gradient.coalesce().to_dense() if gradient.is_sparse else gradient
        for name, gradient in zip(named, found, strict=True)
        if gradient is not None
    }


# --- comparing two passes ----------------------------------------------------------------------


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
