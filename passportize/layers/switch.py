"""Which branch a passportized model runs: one object per model, shared by its layers.

It is an ordinary attribute of every private branch, so a deep copy of the model has its own, and
nothing is global. The root hooks of :mod:`passportize.layers.joint_forward` write it, the layers
read it.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from passportize.config import PassportConfig
from passportize.errors import BranchMisuse
from passportize.utils.trees import Path

if TYPE_CHECKING:
    from passportize.layers.gathered import Gathered
    from passportize.layers.keyed_factors import Ready
    from passportize.layers.layer import PassportLayer
    from passportize.signature.layout import Layout

__all__ = ["Pass", "StepCounter", "Switch"]


_REMEMBERED = 256
"""Steps whose gradients may be taken after the last of them."""


class Pass(Enum):
    """What a forward pass through the model is for."""

    PUBLIC = "public"
    PRIVATE = "private"
    JOINT = "joint"


class Switch:
    """The state that the layers of one model share.

    Attributes:
        config: The model-wide formulation and dials.
        mode: What the user asked for: public, private, or joint training.
        current: What the forward pass under way, or the last one, is doing. It outlives the
            pass, because activation checkpointing repeats parts of it during backward.
        active: Whether a forward pass of the root is under way.
        public_rows, private_rows: Batch rows of each branch in a joint pass.
        mixed: Whether the last joint step was two passes, one for each branch.
        sign_due: Whether the joint pass under way takes the sign loss.
        private_due: Whether it runs the private branch.
        step: Joint steps begun so far, where ``private_period`` or ``sign_every`` ask for them.
        trained: Whether a joint step was ever taken.
        saved: Whether a claim was saved after the last joint step.
        commitment: Commitment of the passport, safe to publish.
        layout: Where the signature bits lie; None until branches are attached.
        sites: Names of the two-branch layers that surgery made.
        batch_statistics: Whether a private branch has statistics of its batch.
        samples_only: Whether some of these are taken over the samples alone, one value of each.
        reason: Why a rehearsal chose two passes.
        automatic: Whether one or two passes is for the rehearsal to say.
        check: Whether a joint pass is rehearsed at all.
        rehearsed: Structures of arguments that were.
        rehearsing: Whether that is happening now.
        share: How many samples of a batch are private, where that is not for the settings to say.
        fixed: Where among the arguments tensors without samples lie that are as long as a batch.
        second: Copies of the arguments, for the second of two separate passes.
        written: Names of the parameters that a forward pass writes into, once that is known.
        marks: What such parameters were before the first pass, until it is.
        deferred: The sign loss of each call of the root in a step whose private pass is left to
            its caller (:func:`~passportize.training.step.joint_step`); None in all others.
        second_passes: Between which autograd nodes, by number, second passes lie.
        entry: Name of the module at whose input the private rows are appended; the root if empty.
        penalties: Sign losses that layers of a sharded model have computed themselves.
        gathered: Names of the sites for which the root does so in the pass under way.
        factors: What the root has computed for its sites in the pass under way, or the last one.
        values: The private scales and shifts that come of them, where the root knows these, too.
        counters: Numbers of batches that private statistics have met, which the pass under way
            counts up at its end; one for each time that a norm was called.
        rows: The rows of these sites and what their sign loss takes, in the pass under way.
    """

    def __init__(self, config: PassportConfig) -> None:
        self.config = config
        self.commitment = ""
        self.layout: Layout | None = None
        self.sites: tuple[str, ...] = ()
        self.batch_statistics = False
        self.samples_only = False
        self.automatic = config.passes == "automatic"
        self.reason = ""
        self.check = True
        self.rehearsed: frozenset[Any] = frozenset()
        self.rehearsing = False
        self.share: int | None = None
        self.fixed: frozenset[Path] = frozenset()
        self.second: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self.written: frozenset[str] | None = None
        self.marks: dict[str, Any] | None = None
        self.deferred: list[Tensor] | None = None
        self.second_passes: deque[tuple[int, int]] = deque(maxlen=_REMEMBERED)
        self.entry = ""
        self.mode = Pass.PUBLIC
        self.current = Pass.PUBLIC
        self.active = False
        self.public_rows = 0
        self.private_rows = 0
        self.mixed = False
        self.sign_due = True
        self.private_due = config.has_private_pass
        self.step = 0
        self.trained = False
        self.saved = False
        self.penalties: dict[str, tuple[PassportLayer, Tensor]] = {}
        self.factors: dict[str, tuple[Tensor, Tensor]] = {}
        self.gathered: frozenset[str] = frozenset()
        self.values: dict[str, Ready] = {}
        self.rows: Gathered | None = None
        self.counters: list[Tensor] = []

    def __getstate__(self) -> dict[str, object]:
        """Copies and files start outside any forward pass."""
        state = dict(self.__dict__)
        state.update(
            active=False,
            penalties={},
            factors={},
            gathered=frozenset(),
            values={},
            rows=None,
            counters=[],
            second=None,
            marks=None,
            deferred=None,
            second_passes=deque(maxlen=_REMEMBERED),
            mode=Pass.PUBLIC,
            current=Pass.PUBLIC,
        )
        return state

    @property
    def two_passes(self) -> str:
        """What to do where the rows of the two branches cannot share a batch."""
        return (
            "passportize the model with "
            f"config=PassportConfig.{self.config.formulation}(passes='separate')"
        )

    @property
    def counts(self) -> bool:
        """Whether there are steps in which not everything happens."""
        return self.config.private_period > 1 or self.config.sign_every > 1

    @property
    def responses_constant(self) -> bool:
        """Whether nothing is to be learned through the responses in the pass under way.

        So it is in joint steps without sign loss. The gradient of a response is as large as the
        weight it was read from, however few entries were read, so leaving it out is most of what
        ``sign_every`` saves.
        """
        if self.sign_due:
            return False
        if self.mixed and (self.active or torch._C._current_graph_task_id() != -1):
            return True
        return self.effective() is Pass.JOINT

    # A number that changes is a new program at every step for torch.compile; what is due is not.
    # (torch.compiler.disable would do the same, and import the compiler with this module.)
    @torch._disable_dynamo  # type: ignore[attr-defined]
    def take_turn(self) -> None:
        """Say what is due in the joint step that begins, and count it."""
        self.sign_due = self.step % self.config.sign_every == 0
        self.private_due = (
            self.config.has_private_pass and self.step % self.config.private_period == 0
        )
        self.step += 1

    def effective(self) -> Pass:
        """The pass that a layer reached now belongs to.

        Inside a forward pass of the root, and when activation checkpointing repeats a part of it
        during backward, that is the root's pass. A part of the model called on its own
        (``model.forward_features(x)``, say) is public unless the user switched to private.
        """
        if self.active:
            return self.current
        if self.current is not Pass.PUBLIC and torch._C._current_graph_task_id() != -1:
            if self.second_passes and self._repeats_second_pass():
                return Pass.PRIVATE
            return Pass.JOINT if self.mixed else self.current
        return Pass.PRIVATE if self.mode is Pass.PRIVATE else Pass.PUBLIC

    def _repeats_second_pass(self) -> bool:
        """Whether it is the second of two separate passes that checkpointing repeats.

        The node of the graph that asks for it has the number of its time.
        """
        node: Any = torch._C._current_autograd_node()
        if node is None:
            return False
        number = node._sequence_nr()
        return any(start <= number < end for start, end in self.second_passes)

    def known(self, name: str) -> tuple[Tensor, Tensor] | None:
        """``tanh(q u)`` and ``tanh(v)`` of a site, where the root has computed them for this pass.

        A part of the model that is called on its own gets none: weights may have changed since.
        """
        return self.factors.get(name) if self._is_under_way() else None

    def ready(self, name: str, scale: Tensor, shift: Tensor | None) -> Ready | None:
        """The private factors of a site by value, where the root has computed them from these."""
        found = self.values.get(name)
        return found if found and found.fits(scale, shift) and self._is_under_way() else None

    def _is_under_way(self) -> bool:
        return self.active or torch._C._current_graph_task_id() != -1

    def collect(self, layer: PassportLayer, penalty: Tensor | None) -> None:
        """Take the penalty of one layer in a forward pass.

        It depends on the weights alone, so a layer that is called again (a shared norm) adds
        nothing; repeats during backward do not count either.
        """
        if self.active and penalty is not None:
            self.penalties.setdefault(layer.passport.site.name, (layer, penalty))

    def count_batch(self, counter: Tensor) -> None:
        """Add one to a number of batches, now or together with those of the other norms."""
        if self.active and not torch.compiler.is_compiling():
            self.counters.append(counter)
        else:
            counter.add_(1)

    def add_counts(self) -> None:
        """Count up what the pass under way has met."""
        times: dict[int, int] = {}
        for counter in self.counters:
            times[id(counter)] = times.get(id(counter), 0) + 1
        once = {id(counter): counter for counter in self.counters}
        self.counters = []
        if once:
            torch._foreach_add_(list(once.values()), [times[key] for key in once])

    def is_single(self, rows: int) -> bool:
        """Whether a tensor with so many rows has one for each branch, or none."""
        doubled = self.private_rows > 0 and self.effective() is Pass.JOINT
        return rows <= (2 if doubled else 1)

    def split(self, rows: int, name: str) -> int:
        """How many leading rows of a tensor with so many rows belong to the public branch.

        Norms may see the batch flattened together with windows or tokens; it stays batch-major.

        Raises:
            BranchMisuse: The rows cannot be told apart.
        """
        total = self.public_rows + self.private_rows
        if rows % total:
            raise BranchMisuse(
                f"{name}: its input has {rows} rows, which is no multiple of the joint batch of "
                f"{self.public_rows} public and {self.private_rows} private samples. The first "
                f"dimension of this layer does not count samples; {self.two_passes}, or leave the "
                "layer out with where="
            )
        return rows // total * self.public_rows


class StepCounter(nn.Module):
    """Submodule ``counter`` of the first private branch, where ``switch.counts``.

    With it a resumed training knows when the next sign loss and the next private pass are due,
    whatever script wrote the checkpoint. It is no buffer, so DDP does not send it round, and
    what counts stays a Python number that nobody has to fetch from a GPU.

    Args:
        switch: The state that holds the number of joint steps.
    """

    def __init__(self, switch: Switch) -> None:
        super().__init__()
        self.switch = switch

    def get_extra_state(self) -> Tensor:
        """Joint steps begun so far, int64 ``[]``."""
        return torch.tensor(self.switch.step)

    def set_extra_state(self, state: Tensor) -> None:
        """Go on from there."""
        self.switch.step = int(state)
