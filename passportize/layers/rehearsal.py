"""The joint pass tried in training mode, before it is trusted.

Appending samples to a batch is right where samples never meet outside the norms and come first in
every tensor that holds them. No structure tells; so some samples of an example run through the
plain model, with some of them appended through both branches, and those alone through the private
branch. Outputs, statistics and gradients have to be the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from passportize.errors import BranchMisuse
from passportize.layers.batch import other_samples
from passportize.layers.layer import PassportLayer
from passportize.layers.rehearsed_pass import (
    Arguments,
    Record,
    Spread,
    difference,
    precision_of,
    run_once,
    tree_record,
)
from passportize.layers.second_pass import copied_arguments
from passportize.layers.switch import Pass, Switch
from passportize.utils.draws import AlikeDraws, CollectiveCalled
from passportize.utils.frozen import (
    eager_mode,
    frozen_parameters,
    frozen_random_state,
    silent_warnings,
)
from passportize.utils.trees import Path, foreign_in, leaves_in, map_named

__all__ = ["LARGEST", "Finding", "rehearse", "structure_of", "why_left_out"]

_ROWS = 4
"""Samples that are tried, where there are so many."""
_REPEATED = 2
"""Samples that are appended to them."""
LARGEST = 1_000_000_000
"""Models with more parameters are not tried: their gradients would be in memory twice."""


@dataclass(frozen=True)
class Finding:
    """What a rehearsal found.

    Attributes:
        passes: ``"doubled"`` or ``"separate"``, whichever is right; empty where the inputs do not
            settle it.
        reason: Why it is not ``"doubled"``.
        fixed: Where among the arguments tensors lie that are as long as the batch and hold no
            samples.
        unkeyed: Bound norms whose private output does not depend on their private factors.
        error: Why ``"separate"`` is not right either; empty where it is.
    """

    passes: str
    reason: str = ""
    fixed: frozenset[Path] = frozenset()
    unkeyed: tuple[str, ...] = ()
    error: str = ""


def structure_of(arguments: Arguments) -> frozenset[Any]:
    """Where the tensors of a call lie, and how many dimensions they have."""
    return frozenset(
        (path, leaf.dim()) for path, leaf in leaves_in(arguments) if isinstance(leaf, Tensor)
    )


def why_left_out(root: nn.Module) -> str:
    """Why a model is not tried at all; empty where it is."""
    count = 0
    parameter: Any
    for name, parameter in root.named_parameters():
        if nn.parameter.is_lazy(parameter):
            return f"{name} has no shape yet"
        if parameter.is_meta:
            return f"{name} has no values (meta device)"
        if hasattr(parameter, "device_mesh") or hasattr(parameter, "_is_flat_param"):
            return f"{name} is sharded"
        count += parameter.numel()
    if count > LARGEST:
        return f"it has {count:,} parameters, more than {LARGEST:,}"
    return ""


def rehearse(
    root: nn.Module, switch: Switch, arguments: Arguments, separate: bool = False
) -> Finding:
    """Try joint passes on a few samples; model, random states and switch are left as they were.

    Args:
        root: The passportized model.
        switch: Its switch.
        arguments: Positional and keyword arguments of one call.
        separate: Try two passes only.
    """
    kept = dict(switch.__dict__)
    switch.step, switch.rehearsing = 0, True
    try:
        with (
            frozen_random_state(cuda=True),
            frozen_parameters(root),
            eager_mode(),
            silent_warnings(),
        ):
            rehearsal = _Rehearsal(root, switch, arguments)
            return rehearsal.two_passes("") if separate else rehearsal.finding()
    except CollectiveCalled as error:
        return Finding("", f"its forward pass talks to other processes ({error})")
    finally:
        switch.__dict__.clear()
        switch.__dict__.update(kept)


class _DoesNotRun(Exception):
    """The plain model raises an error on these inputs."""


class _Rehearsal:
    def __init__(self, root: nn.Module, switch: Switch, arguments: Arguments) -> None:
        self.root, self.switch, self.arguments = root, switch, arguments
        self.gradients = torch.is_grad_enabled() and not any(
            module._backward_hooks or module._backward_pre_hooks for module in root.modules()
        )
        self.precision = precision_of(root)
        self.unkeyed: dict[str, bool] = {}

    def finding(self) -> Finding:
        """Try the ways of appending samples, then two passes."""
        foreign = next(foreign_in(self.arguments), None)
        if foreign is not None:
            kind = type(foreign).__name__
            return self.two_passes(f"nobody knows what a {kind} among its inputs holds")
        tensors = [
            (path, leaf)
            for path, leaf in leaves_in(self.arguments)
            if isinstance(leaf, Tensor) and leaf.dim()
        ]
        if not tensors:
            return self.two_passes("its input holds no tensor with a batch dimension")
        if any(leaf.is_meta for _, leaf in tensors):
            return Finding("", "its example input is on the meta device")
        rows = int(tensors[0][1].shape[0])
        carriers = [path for path, leaf in tensors if leaf.shape[0] == rows]
        if rows == 0:
            return Finding("", "the batch is empty")
        reasons, stopped = [], []
        for fixed in _hypotheses(carriers):
            try:
                reason = self._doubled(rows, frozenset(carriers) - fixed, fixed)
            except _DoesNotRun as error:
                stopped.append(str(error))
                continue
            if reason is None:
                return Finding("", "rounding alone moves its output too far to compare")
            if not reason:
                return Finding("doubled", "", fixed, self._unkeyed())
            reasons.append(reason)
        if reasons:
            return self.two_passes(reasons[0])
        return self.two_passes(f"it does not run on some samples of the batch ({stopped[0]})")

    def _doubled(self, rows: int, carriers: frozenset[Path], fixed: frozenset[Path]) -> str | None:
        """What is wrong with appending samples; None where the inputs do not settle it."""
        count, share = (rows, min(rows, _REPEATED)) if rows <= _ROWS else (_ROWS, _REPEATED)
        if rows == 1:
            count, share = 2, 2
        batch = map_named(partial(_samples, carriers, count), self.arguments)
        if _all_alike(batch, carriers):
            return None
        draws = partial(AlikeDraws, count)
        plain = self._plain(batch, draws())
        spread = Spread(self.precision, lambda: self._plain(batch, draws(), disturbed=True))
        self.switch.share, self.switch.fixed = share, fixed
        try:
            joint = self._run(Pass.JOINT, batch, draws(share))
        except CollectiveCalled:
            raise
        except Exception as error:
            return f"with samples appended it raises {type(error).__name__}: {error}"
        finally:
            self.switch.share = None
        reason = difference(plain, joint, spread)
        if not reason:
            reason = self._private(batch, carriers, share, joint.output.private)
        return None if spread.blunt and not reason else reason

    def _private(
        self, batch: Arguments, carriers: frozenset[Path], share: int, private: Any
    ) -> str:
        """Whether the appended samples come out as they do without the others."""
        few = map_named(lambda path, x: other_samples(x, share) if path in carriers else x, batch)
        draws = partial(AlikeDraws, share)
        try:
            alone = self._run(Pass.PRIVATE, few, draws(), gradients=False, around=self._watch_keys)
        except CollectiveCalled:
            raise
        except Exception as error:
            return f"on {share} samples alone it raises {type(error).__name__}: {error}"
        spread = Spread(
            self.precision,
            lambda: self._run(Pass.PRIVATE, few, draws(), gradients=False, around=self._disturb),
        )
        if self.switch.entry:
            return ""  # what lies before the entry saw the whole batch
        alone.buffers, found = {}, tree_record(private)
        reason = difference(alone, found, spread)
        return f"of the private branch {reason}" if reason else ""

    def two_passes(self, reason: str) -> Finding:
        """Whether two passes do what one could not."""
        self.switch.config = replace(self.switch.config, passes="separate")
        try:
            copied_arguments(self.arguments)
        except BranchMisuse as refused:
            return Finding("separate", reason, error=str(refused))
        try:
            plain = self._plain(self.arguments, AlikeDraws(1), gradients=False)
        except _DoesNotRun as stopped:
            return Finding("", f"it does not run in training mode ({stopped})")
        try:
            joint = self._run(
                Pass.JOINT, self.arguments, AlikeDraws(1), gradients=False, around=self._watch_keys
            )
        except CollectiveCalled:
            raise
        except Exception as failure:
            raised = f"two passes raise {type(failure).__name__}: {failure}"
            return Finding("separate", reason, error=raised)
        spread = Spread(
            self.precision,
            lambda: self._plain(self.arguments, AlikeDraws(1), gradients=False, disturbed=True),
        )
        wrong = difference(plain, joint, spread)
        error = f"with two passes {wrong}" if wrong else ""
        return Finding("separate", reason, unkeyed=self._unkeyed(), error=error)

    def _plain(
        self, batch: Arguments, draws: AlikeDraws, gradients: bool = True, disturbed: bool = False
    ) -> Record:
        around = self._disturb if disturbed else None
        try:
            return self._run(Pass.PUBLIC, batch, draws, gradients, around)
        except CollectiveCalled:
            raise
        except Exception as error:
            raise _DoesNotRun(f"{type(error).__name__}: {error}") from error

    def _run(
        self,
        mode: Pass,
        batch: Arguments,
        draws: AlikeDraws,
        gradients: bool = True,
        around: Any = None,
    ) -> Record:
        wanted = gradients and self.gradients
        return run_once(self.root, self.switch, mode, batch, draws, wanted, around)

    def _unkeyed(self) -> tuple[str, ...]:
        return tuple(name for name, same in self.unkeyed.items() if same)

    def _layers(self) -> Iterator[PassportLayer]:
        for module in self.root.modules():
            if isinstance(module, PassportLayer):
                yield module

    def _disturb(self) -> None:
        """Add to the output of every norm what rounding could."""

        def add(module: nn.Module, args: Any, output: Any) -> Any:
            if not isinstance(output, Tensor) or not output.is_floating_point():
                return None
            size = output.detach().float().square().mean().sqrt() * 4 * self.precision
            # As good as random, and nothing is drawn.
            noise = torch.arange(output.numel(), device=output.device).mul_(7919).sin()
            return output + (noise.view(output.shape) * size).to(output.dtype)

        for layer in self._layers():
            layer.register_forward_hook(add)

    def _watch_keys(self) -> None:
        """Note which bound norms do not care for their private factors."""

        def look(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            assert isinstance(layer, PassportLayer)
            if self.switch.effective() is not Pass.PRIVATE:
                return
            name = layer.passport.site.name
            if self.unkeyed.get(name) is False or not args or not output.any():
                return
            scale, shift, _ = layer.private_factors(args[0])
            if scale is None:
                return
            with torch.no_grad():
                other = layer._private(
                    args[0],
                    scale * 2 + 1,
                    None if shift is None else shift + 1,
                    *args[1:],
                    **kwargs,
                )
            self.unkeyed[name] = torch.equal(other, output)

        for layer in self._layers():
            if layer.passport.transforms and not layer.writes_input:
                layer.register_forward_hook(look, with_kwargs=True)


def _hypotheses(carriers: list[Path]) -> Iterator[frozenset[Path]]:
    """Which tensors of the length of the batch may hold no samples: none of them, most likely."""
    yield frozenset()
    others = carriers[1:]
    for path in others:
        yield frozenset({path})
    if len(others) > 1:
        yield frozenset(others)


def _samples(carriers: frozenset[Path], count: int, path: Path, tensor: Tensor) -> Tensor:
    """Some samples of a batch, all different where that can be."""
    if path not in carriers:
        return tensor
    # Spread over the batch: neighbours have much in common where it is packed or sorted.
    chosen = torch.linspace(0, len(tensor) - 1, count).round().long().to(tensor.device)
    few = tensor.detach()[chosen]
    if len(few) > 1 and bool((few == few[:1]).all()) and few.is_floating_point():
        generator = torch.Generator(device="cpu").manual_seed(2)
        noise = torch.randn(few.shape, generator=generator, device="cpu")
        few = few + noise.to(few.device, few.dtype) * max(1.0, float(few.abs().max()))
    elif len(few) > 1 and bool((few == few[:1]).all()) and few.dim() > 1:
        few = torch.stack([row.roll(index, -1) for index, row in enumerate(few)])
    return few.requires_grad_(tensor.requires_grad)


def _all_alike(batch: Arguments, carriers: frozenset[Path]) -> bool:
    return all(
        bool((leaf == leaf[:1]).all()) for path, leaf in leaves_in(batch) if path in carriers
    )
