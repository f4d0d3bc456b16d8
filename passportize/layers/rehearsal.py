"""The joint pass tried in training mode, before it is trusted.

Appending samples to a batch is right where samples never meet outside the norms and come first in
every tensor that holds them. No structure tells; so some samples of an example run through the
plain model, with some of them appended through both branches, and those alone through the private
branch. Outputs, statistics and gradients have to be the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from passportize.errors import BranchMisuse
from passportize.layers.batch import other_samples
from passportize.layers.norm_hooks import disturb_norms, watch_keys
from passportize.layers.rehearsal_samples import hypotheses, samples, sizes
from passportize.layers.rehearsed_pass import (
    Arguments,
    Record,
    needs_draws,
    run_once,
    tree_record,
)
from passportize.layers.same_numbers import Spread, difference, precision_of
from passportize.layers.second_pass import copied_arguments
from passportize.layers.switch import Pass, Switch
from passportize.utils.draws import AlikeDraws, CollectiveCalled
from passportize.utils.frozen import (
    eager_mode,
    frozen_model,
    frozen_parameters,
    frozen_random_state,
    paused_collection,
    silent_warnings,
)
from passportize.utils.trees import Path, foreign_in, leaves_in, map_named

__all__ = ["LARGEST", "Finding", "rehearse", "structure_of", "why_left_out"]

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
    if getattr(root, "_is_replica", False):
        return "it is one of the copies that DataParallel makes for each step"
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
    switch.rehearsing = True
    try:
        with (
            frozen_random_state(cuda=True),
            frozen_parameters(root),
            frozen_model(root, values=True) as put_back,
            eager_mode(),
            silent_warnings(),
            paused_collection(),
        ):
            rehearsal = _Rehearsal(root, switch, arguments, put_back)
            return rehearsal.two_passes("") if separate else rehearsal.finding()
    except CollectiveCalled as error:
        return Finding("", f"its forward pass talks to other processes ({error})")
    except torch.OutOfMemoryError:
        return Finding("", "there is not enough memory for it")
    finally:
        switch.__dict__.clear()
        switch.__dict__.update(kept)


class _DoesNotRun(Exception):
    """The plain model raises an error on these inputs."""


class _Unsettled(Exception):
    """These inputs do not tell."""


_NOT_OURS = (CollectiveCalled, torch.OutOfMemoryError)
"""Errors that say nothing of how samples meet."""


class _Rehearsal:
    def __init__(
        self, root: nn.Module, switch: Switch, arguments: Arguments, put_back: Callable[[], None]
    ) -> None:
        self.root, self.switch, self.arguments = root, switch, arguments
        self.put_back = put_back
        self.gradients = torch.is_grad_enabled() and not any(
            module._backward_hooks or module._backward_pre_hooks for module in root.modules()
        )
        self.precision = precision_of(root)
        self.draws = True
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
        for count, share in sizes(rows):
            for fixed in hypotheses(carriers):
                where = frozenset(carriers) - fixed
                try:
                    reason = self._doubled(where, fixed, count, share)
                except _DoesNotRun as error:
                    stopped.append(str(error))
                    continue
                except _Unsettled as error:
                    return Finding("", str(error))
                if not reason:
                    return Finding("doubled", "", fixed, self._unkeyed())
                reasons.append(reason)
            if reasons:
                return self.two_passes(reasons[0])
        return self.two_passes(f"it does not run on some samples of the batch ({stopped[0]})")

    def _doubled(
        self, carriers: frozenset[Path], fixed: frozenset[Path], count: int, share: int
    ) -> str:
        """What is wrong with appending samples; empty if nothing is."""
        batch = samples(self.arguments, carriers, count)
        if batch is None:
            raise _Unsettled("its samples are all alike")
        draws = partial(AlikeDraws, count)
        spread = Spread(self.precision, lambda: self._plain(batch, draws(), disturbed=True))
        self.switch.share, self.switch.fixed = share, fixed
        # A second guess is wrong more often than not, which outputs alone show.
        for gradients in (False, True) if fixed else (True,):
            first = draws()
            self.draws = True
            plain = self._plain(batch, first, gradients)
            self.draws = needs_draws(first)
            try:
                joint = self._run(Pass.JOINT, batch, draws(share), gradients)
            except _NOT_OURS:
                raise
            except Exception as error:
                return f"with samples appended it raises {type(error).__name__}: {error}"
            reason = difference(plain, joint, spread)
            if reason:
                return reason
        reason = self._private(batch, carriers, share, joint.output.private)
        if spread.blunt and not reason:
            raise _Unsettled("rounding alone moves its output too far to compare")
        return reason

    def _private(
        self, batch: Arguments, carriers: frozenset[Path], share: int, private: Any
    ) -> str:
        """Whether the appended samples come out as they do without the others."""
        few = map_named(lambda path, x: other_samples(x, share) if path in carriers else x, batch)

        def run(around: Callable[[], None]) -> Record:
            draws = AlikeDraws(share)
            return self._run(Pass.PRIVATE, few, draws, gradients=False, around=around)

        try:
            alone = run(self._watch_keys)
        except _NOT_OURS:
            raise
        except Exception as error:
            return f"on {share} samples alone it raises {type(error).__name__}: {error}"
        if self.switch.entry:
            return ""  # what lies before the entry saw the whole batch
        spread = Spread(self.precision, lambda: run(self._disturb_norms))
        alone.buffers, found = {}, tree_record(private)
        reason = difference(alone, found, spread)
        return f"of the private branch {reason}" if reason else ""

    def two_passes(self, reason: str) -> Finding:
        """Whether two passes do what one could not."""
        self.switch.config = replace(self.switch.config, passes="separate")
        self.draws = True
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
        except _NOT_OURS:
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
        around = self._disturb_norms if disturbed else None
        try:
            return self._run(Pass.PUBLIC, batch, draws, gradients, around)
        except _NOT_OURS:
            raise
        except Exception as error:
            raise _DoesNotRun(f"{type(error).__name__}: {error}") from error

    def _run(
        self,
        mode: Pass,
        batch: Arguments,
        draws: AlikeDraws,
        gradients: bool = True,
        around: Callable[[], None] | None = None,
    ) -> Record:
        self.switch.step = 0  # a step in which everything is due
        wanted = gradients and self.gradients
        return run_once(
            self.root,
            self.switch,
            mode,
            batch,
            draws if self.draws else None,
            self.put_back,
            wanted,
            around,
        )

    def _disturb_norms(self) -> None:
        disturb_norms(self.root, self.precision)

    def _watch_keys(self) -> None:
        watch_keys(self.root, self.switch, self.unkeyed)

    def _unkeyed(self) -> tuple[str, ...]:
        return tuple(name for name, same in self.unkeyed.items() if same)
