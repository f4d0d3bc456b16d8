"""The joint forward pass: two hooks on the root of a passportized model.

Before the root's forward, or where the first bound part of the model begins, the private part of
the batch is appended (``cat([x, x[:k]])``); every two-branch layer norms its rows with their own
branch; after it the output is cut in two. DDP, AMP, EMA, torch.compile and activation
checkpointing see one ordinary forward pass.
"""

from __future__ import annotations

import logging
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from passportize.errors import BranchMisuse
from passportize.layers.batch import (
    append_rows,
    check_known,
    count_rows,
    cut_rows,
    is_packing,
)
from passportize.layers.gathered import Gathered, can_gather
from passportize.layers.integrity import check_layers
from passportize.layers.keyed_factors import ready_factors
from passportize.layers.layer import PassportLayer
from passportize.layers.second_pass import copied_arguments, note_writing, second_pass
from passportize.layers.settling import settle_passes
from passportize.layers.switch import Pass, Switch
from passportize.layers.weight_owner import WeightOwner
from passportize.utils.trees import Path, map_named, tensors_in

__all__ = [
    "FULL_WEIGHT_ROWS",
    "MINIMUM_ROWS",
    "MINIMUM_SAMPLES",
    "JointOutput",
    "RootHooks",
    "private_share",
    "weight_for",
]

_logger = logging.getLogger(__name__)


class JointOutput(NamedTuple):
    """What the root of a passportized model returns in joint training.

    Attributes:
        public: The plain model's output, for the whole batch.
        private: The private branch's output for the first ``private_rows`` samples; None in
            steps without a private pass.
        penalty: Weighted sign loss of all sites, a scalar.
        private_rows: Number of samples that went through the private branch; -1 for all of them,
            in a pass of their own.
        private_weight: Weight of the private branch's loss in this step, see
            :func:`~passportize.layers.joint_forward.weight_for`.
        public_rows: Number of samples of the batch; -1 where nobody had to count them.
        advice: What to do where targets cannot be cut like the batch.
    """

    public: Any
    private: Any
    penalty: Tensor
    private_rows: int
    private_weight: float
    public_rows: int = -1
    advice: str = ""


class RootHooks:
    """The hooks; their bound methods are deep-copied and pickled together with the switch."""

    def __init__(self, switch: Switch) -> None:
        self.switch = switch

    def put_in(self, root: nn.Module) -> None:
        """Register both hooks on the root, and one where the batch is doubled late."""
        root.register_forward_pre_hook(self.begin, with_kwargs=True)
        root.register_forward_hook(self.finish, with_kwargs=True, always_call=True)
        if self.switch.entry:
            root.get_submodule(self.switch.entry).register_forward_pre_hook(self.enter)

    @staticmethod
    def root_of(model: nn.Module) -> nn.Module | None:
        """The module that has the hooks: a model, or one inside it; None where they are lost."""
        for module in model.modules():
            for hook in module._forward_hooks.values():
                if isinstance(getattr(hook, "__self__", None), RootHooks):
                    return module
        return None

    @staticmethod
    def take_out(root: nn.Module) -> None:
        """Take all hooks away; nothing is left of them."""
        for module in root.modules():
            for hooks, flags in (
                (module._forward_pre_hooks, (module._forward_pre_hooks_with_kwargs,)),
                (
                    module._forward_hooks,
                    (module._forward_hooks_with_kwargs, module._forward_hooks_always_called),
                ),
            ):
                for key, hook in list(hooks.items()):
                    if isinstance(getattr(hook, "__self__", None), RootHooks):
                        del hooks[key]
                        for flag in flags:
                            flag.pop(key, None)

    def begin(
        self, root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Set the pass; in joint training append the private part of the batch."""
        switch = self.switch
        if switch.mode is Pass.JOINT and root.training and switch.deferred is None:
            settle_passes(root, switch, (args, kwargs))
        switch.penalties = {}
        switch.active = True
        switch.private_rows = 0
        switch.mixed = switch.deferred is not None and switch.mode is Pass.PRIVATE
        if switch.mode is Pass.JOINT and not root.training:
            switch.current = Pass.PUBLIC
        else:
            switch.current = switch.mode
        switch.factors, switch.gathered, switch.values, switch.rows = {}, frozenset(), {}, None
        switch.counters = []
        if switch.current is Pass.PUBLIC:
            return None
        if switch.current is Pass.JOINT:
            if not torch.compiler.is_compiling():
                check_layers(root, switch)
            if switch.counts and not switch.deferred:
                switch.take_turn()
        self._gather(root)
        if switch.current is Pass.PRIVATE or switch.deferred is not None:
            return None
        if not switch.private_due:
            return None
        if switch.config.passes == "separate":
            switch.second = copied_arguments((args, kwargs))
            note_writing(root, switch)
            return None
        check_known((args, kwargs), "the input", switch.two_passes)
        rows = count_rows((args, kwargs), switch.two_passes)
        share = private_share(switch, rows)
        if not torch.compiler.is_compiling():
            self._check_unpacked((args, kwargs), rows)
            _tell_of_few(root, switch, rows, share)
        switch.public_rows, switch.private_rows = rows, share
        if switch.entry:
            return None

        def append(path: Path, tensor: Tensor) -> Tensor:
            if tensor.dim() == 0 or tensor.shape[0] != rows or path in switch.fixed:
                return tensor
            return append_rows(tensor, share, switch.rehearsing)

        return map_named(append, (args, kwargs))

    def _gather(self, root: nn.Module) -> None:
        """Compute the factors of all sites whose weights are there; take over their sign loss."""
        switch = self.switch
        layers = [module for module in root.modules() if isinstance(module, PassportLayer)]
        ready = [layer for layer in layers if can_gather(layer.passport)]
        switch.gathered = frozenset(layer.passport.site.name for layer in ready)
        sign_due = switch.current is Pass.JOINT and switch.sign_due
        private_due = switch.current is Pass.PRIVATE or switch.private_due
        if not (ready and (sign_due or private_due)):
            return
        rows = Gathered([layer.passport for layer in ready], sign_due)
        if private_due:
            keyed = [layer for layer in ready if layer.passport.transforms]
            switch.factors = rows.factors()
            if not torch.compiler.is_compiling():
                switch.values = ready_factors(keyed, switch.factors)
        if sign_due:
            switch.rows = rows

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """In joint training append the private part of the batch here instead of at the root."""
        switch = self.switch
        if switch.private_rows == 0 or switch.effective() is not Pass.JOINT:
            return None
        first = args[0] if args else None
        if not isinstance(first, Tensor) or first.shape[0] != switch.public_rows:
            raise BranchMisuse(
                f"{switch.entry}: the batch of {switch.public_rows} samples is doubled at its "
                "input, which has another size now; passportize the model again"
            )
        return (append_rows(first, switch.private_rows, switch.rehearsing), *args[1:])

    def finish(
        self, root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """Cut the output of a joint pass in two and sum the penalties."""
        switch = self.switch
        try:
            if switch.current is not Pass.JOINT or output is None:
                return None
            penalty = self._penalty(root)
            if switch.deferred is not None:
                switch.deferred.append(penalty)
                switch.trained, switch.saved = True, False
                return None
            private = None
            rows = switch.private_rows
            weight = switch.config.private_weight
            if rows:
                weight = weight_for(weight, switch.public_rows, rows)
                output, private = cut_rows(output, switch.public_rows, rows, switch.two_passes)
            elif switch.second is not None:
                note_writing(root, switch)
                private = second_pass(root, switch)
                rows = -1
            switch.trained, switch.saved = True, False
            whole = switch.public_rows if rows > 0 else -1
            return JointOutput(output, private, penalty, rows, weight, whole, switch.two_passes)
        finally:
            switch.active = False
            switch.second = None
            switch.penalties, switch.rows = {}, None
            switch.add_counts()

    def _check_unpacked(self, arguments: Any, rows: int) -> None:
        """Nodes of both branches would meet wherever a packed batch is pooled."""
        if self.switch.trained or self.switch.rehearsed or self.switch.rehearsing:
            return
        for tensor in tensors_in(arguments):
            if not tensor.is_meta and is_packing(tensor, rows):
                raise BranchMisuse(
                    f"the input holds a vector of {rows} numbers in order, as packed graphs have "
                    "it to say which nodes belong together; if that is what it is, "
                    f"{self.switch.two_passes}. Give passportize example_inputs= and it finds out"
                )

    def _penalty(self, root: nn.Module) -> Tensor:
        gathered = self.switch.gathered
        terms = [] if self.switch.rows is None else [self.switch.rows.penalty()]
        for layer, collected in self.switch.penalties.values():
            term: Tensor | None = collected
            if torch.is_grad_enabled() and not collected.requires_grad:
                # Reentrant checkpointing runs its part of the forward pass without gradients.
                term = layer.private_factors()[2]
            if term is not None:
                terms.append(term)
        collected_from = {id(layer) for layer, _ in self.switch.penalties.values()}
        for module in root.modules() if self.switch.sign_due else ():
            # A weight may be used without its layer being called (attention's out_proj, say).
            if (
                isinstance(module, WeightOwner)
                and id(module) not in collected_from
                and module.passport.site.name not in gathered
            ):
                term = module.private_factors()[2]
                if term is not None:
                    terms.append(term)
        if not terms:
            return torch.zeros(())
        if len(terms) == 1:
            return terms[0]
        return torch.stack([term.to(terms[0].device) for term in terms]).sum()


# --- how many samples the private branch sees, and what its loss counts for then --------------

MINIMUM_ROWS = 8
"""Samples of a batch that go through the private branch at least, where it has batch statistics.

Those of two samples are so ill conditioned that a deep network's gradients explode.
"""

MINIMUM_SAMPLES = 16
"""The same where a norm sees one value per channel of each sample, behind a global pooling say.

Elsewhere there are as many values as there are positions times samples.
"""

FULL_WEIGHT_ROWS = 32
"""From so many private samples on the private branch's loss counts in full, see `weight_for`."""


def private_share(switch: Switch, rows: int) -> int:
    """How many of the samples of a batch go through the private branch."""
    if switch.share is not None:
        return switch.share
    least = 1
    if switch.batch_statistics:
        least = MINIMUM_SAMPLES if switch.samples_only else MINIMUM_ROWS
    return min(rows, max(least, round(rows * switch.config.private_fraction)))


def _tell_of_few(root: nn.Module, switch: Switch, rows: int, share: int) -> None:
    """Say at the first step if the private branch gets too few samples to keep up."""
    few = switch.batch_statistics and share < min(rows, FULL_WEIGHT_ROWS)
    if few and not switch.trained and not switch.rehearsing:
        _logger.warning(
            "%s: %d of %d samples take the private branch, few for statistics: its accuracy can "
            "stay points behind the public one; private_fraction=%.2g gives it %d",
            type(root).__name__,
            share,
            rows,
            min(1.0, FULL_WEIGHT_ROWS / rows),
            min(rows, FULL_WEIGHT_ROWS),
        )


def weight_for(weight: float, public_rows: int, private_rows: int) -> float:
    """Weight of the private branch's loss where it sees fewer samples than the public one.

    The gradient of a mean over ``n`` samples has a variance of ``1 / n``. With a weight of
    ``sqrt(n / N)`` the private one adds no more than the public one has over ``N``, so that a few
    samples do not drown what the whole batch says. ``N`` is the batch, at most
    ``FULL_WEIGHT_ROWS``: over more samples the variance is small against what is learnt.

    >>> weight_for(1.0, 32, 8), weight_for(1.0, 8, 8), weight_for(1.0, 128, 32)
    (0.5, 1.0, 1.0)
    """
    enough = min(public_rows, FULL_WEIGHT_ROWS)
    return weight if private_rows >= enough else weight * math.sqrt(private_rows / enough)
